"""Import, export, verify and initialize weights: ``python -m e3d_jax.weights {import,export,verify,init} --help``."""

import argparse
import sys
from typing import Any

from e3d_jax import config as config_lib
from e3d_jax import presets, stages
from e3d_jax.weights import convert, pretrained, verify

PIPELINE = "folder in diffusers' format (safetensors), or the id of a Hugging Face repository"


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the four commands; each sets ``run`` to its function, which takes its options."""
    parser = argparse.ArgumentParser(prog="python -m e3d_jax.weights", description="Convert and check weights.")
    commands = parser.add_subparsers(required=True)
    config = argparse.ArgumentParser(add_help=False)
    config.add_argument(
        "--config", default="envision3d", help="preset or file, NAME or NAME:VARIANT, of all settings but the sizes"
    )
    pipelines = argparse.ArgumentParser(add_help=False)
    pipelines.add_argument("--anchor", required=True, help=f"stage-1 pipeline: {PIPELINE}")
    pipelines.add_argument("--interpolation", required=True, help=f"stage-2 pipeline: {PIPELINE}")
    normals = "Omnidata's checkpoint (.ckpt), or a weights folder with a normal estimator"

    command = commands.add_parser("import", parents=[pipelines, config], help="make a weights folder of both pipelines")
    command.add_argument("--normals", default="mini", help=f"{normals} (default: %(default)s)")
    command.add_argument("--out", required=True, help="weights folder to make")
    command.set_defaults(run=import_weights)

    command = commands.add_parser("export", help="write both pipelines of a weights folder")
    command.add_argument("--weights", required=True, help="weights folder")
    command.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), help="default: as stored")
    command.add_argument("--out", required=True, help="folder to make, with anchor/ and interpolation/")
    command.set_defaults(run=export_weights)

    command = commands.add_parser("verify", parents=[pipelines], help="compare pipelines with recorded outputs")
    command.add_argument("--recorded", required=True, help=".npz of the original's inputs and outputs")
    command.set_defaults(run=verify_weights)

    command = commands.add_parser("init", parents=[config], help="initialize training of a full-size stage")
    command.add_argument(
        "--from", dest="source", choices=sorted(pretrained.SOURCES), required=True, help="pretrained model"
    )
    command.add_argument("--pipeline", required=True, help=f"of that model: {PIPELINE}")
    command.add_argument("--normals", help=f"normal estimator for training of the anchor stage: {normals}")
    command.add_argument("--seed", type=int, default=0, help="seed of the new layers (default: %(default)s)")
    command.add_argument("--out", required=True, help="weights folder to make")
    command.set_defaults(run=init_weights)
    return parser


def _config(name: str) -> config_lib.SystemConfig:
    return stages.parse_config(presets.load(name).to_dict())


def import_weights(*, anchor: str, interpolation: str, config: str, normals: str, out: str) -> None:
    """Make a weights folder of both pipelines."""
    pipelines: dict[convert.Stage, Any] = {"anchor": anchor, "interpolation": interpolation}
    convert.import_pipelines(pipelines, out, _config(config), normals)
    print(f"written to {out}")


def export_weights(*, weights: str, dtype: str | None, out: str) -> None:
    """Write both pipelines of a weights folder."""
    convert.export_pipelines(weights, out, dtype)
    print(f"written to {out}")


def verify_weights(*, anchor: str, interpolation: str, recorded: str) -> None:
    """Print a table that compares pipelines with recorded outputs.

    Raises:
      ValueError: an array differs.
    """
    rows = list(verify.verify({"anchor": anchor, "interpolation": interpolation}, recorded))
    print(verify.table(rows))
    if failed := sum(not row.passed for row in rows):
        raise ValueError(f"{failed} of {len(rows)} arrays differ from the recorded ones")


def init_weights(*, source: str, pipeline: str, config: str, normals: str | None, seed: int, out: str) -> None:
    """Initialize training of a full-size stage."""
    pretrained.init_stage(source, pipeline, out, _config(config), seed, normals)
    print(f"written to {out}")


def main(argv: list[str] | None = None) -> None:
    """Run one command; invalid input ends in a one-line message."""
    options = vars(arguments().parse_args(argv))
    run = options.pop("run")
    try:
        run(**options)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
