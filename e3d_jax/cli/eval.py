"""Compare two folders of views, or two mesh files.

e3d eval --pred=PREDICTION --gt=GROUND_TRUTH [--align] [--json]

Views: mean PSNR (dB), SSIM and silhouette IoU over the views in both folders, and the mean angle of normal maps.
Meshes (.glb, .ply, .obj): Chamfer distance and F-scores in object units, volume IoU, normal consistency.
"""

import json

from e3d_jax.cli.flags import Flags, no_arguments


def define(flags: Flags) -> None:
    """Define the flags."""
    flags.string("pred", None, "Folder of views or mesh file to score.", required=True)
    flags.string("gt", None, "Ground truth: folder of views or mesh file.", required=True)
    flags.switch("align", False, "First fit scale, translation and yaw of the mesh.")
    flags.switch("json", False, "Print one line of JSON after the table.")


def run(flags: Flags, arguments: list[str]) -> None:
    """Print a table of scores and, if requested, one line of JSON."""
    from e3d_jax.evaluation import report

    no_arguments(arguments)
    scores = report.compare(flags.pred, flags.gt, align=flags.align)
    print(report.table(scores))
    if flags.json:
        print(json.dumps({"pred": flags.pred, "gt": flags.gt, "aligned": flags.align, **scores}))
