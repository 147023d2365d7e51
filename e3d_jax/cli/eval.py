"""Score views or meshes, with or without the truth.

    e3d eval --pred=PREDICTION [--gt=GROUND_TRUTH] [--json=FILE] [--markdown=FILE] [--align=front]
             [--against=OTHER.json]

Both are a folder of views, a mesh file (.glb, .ply, .obj), or a folder of such by object name. Prints a table of means
with bootstrap 95 % intervals over the objects. See docs/evaluation.md for every figure.
"""

import json

from e3d_jax.cli.flags import Flags, no_arguments


def define(flags: Flags) -> None:
    """Define the flags."""
    flags.source("pred", None, "Views or meshes to score.", required=True)
    flags.source("gt", None, "Ground truth: views or meshes. Without it, only what needs no truth is scored.")
    flags.string("json", None, "File of the report.")
    flags.string("markdown", None, "File of the table.")
    flags.choice(
        "align",
        "none",
        ["none", "front", "mesh"],
        "front: scale the true mesh until its front silhouette agrees with the predicted one. mesh: first fit scale, "
        "translation and yaw of the predicted mesh.",
    )
    flags.string("protocol", None, "Score a fixed list of objects and views: synthetic40 or scans20.")
    flags.switch("consistency", False, "Also fit a surface to half of the views; always done without --gt.")
    flags.choice("trunk", "alex", ["alex", "vgg"], "Network of the learned distances.")
    flags.source("lpips", None, "File of torchvision's weights of that network, for LPIPS.")
    flags.source("against", None, "Report of another system, for paired differences.")
    flags.integer("seed", 0, "Seed of sampled points, fits and intervals.")


def run(flags: Flags, arguments: list[str]) -> None:
    """Print a table of scores, and write the report."""
    from e3d_jax import files
    from e3d_jax.evaluation import evaluate

    no_arguments(arguments)
    options = evaluate.Options(
        align=flags.align,
        consistency=flags.consistency or flags.gt is None,
        trunk=flags.trunk,
        protocol=flags.protocol,
        lpips=flags.lpips,
        seed=flags.seed,
    )
    report = evaluate.evaluate(flags.pred, flags.gt, options)
    if flags.against is not None:
        report["against"] = evaluate.against(report, flags.against)
    table = evaluate.markdown(report)
    print(table)
    if flags.json is not None:
        files.write_atomically(flags.json, json.dumps(report, indent=1).encode())
    if flags.markdown is not None:
        files.write_atomically(flags.markdown, f"{table}\n".encode())
