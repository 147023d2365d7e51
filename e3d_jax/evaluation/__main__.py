"""Compare two folders of views, or two mesh files.

Views: mean PSNR (dB), SSIM and silhouette IoU over the views in both folders, and the mean angle of normal maps.
Meshes (.glb, .ply, .obj): Chamfer distance and F-scores in object units, volume IoU, normal consistency.
"""

import argparse
import json
import os
import sys

from e3d_jax.evaluation import report


def compare(pred: str | os.PathLike, gt: str | os.PathLike, *, align: bool = False, as_json: bool = False) -> None:
    """Print a table of scores, see :func:`report.compare`, and a line of JSON if requested."""
    scores = report.compare(pred, gt, align=align)
    print(report.table(scores))
    if as_json:
        print(json.dumps({"pred": os.fspath(pred), "gt": os.fspath(gt), "aligned": align, **scores}))


def main() -> None:
    """Run the command; errors become one sentence."""
    parser = argparse.ArgumentParser(
        "python -m e3d_jax.evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pred", required=True, help="folder of views or mesh file to score")
    parser.add_argument("--gt", required=True, help="ground truth: folder of views or mesh file")
    parser.add_argument("--align", action="store_true", help="first fit scale, translation and yaw of the mesh")
    parser.add_argument("--json", action="store_true", help="print one line of JSON after the table")
    options = parser.parse_args()
    try:
        compare(options.pred, options.gt, align=options.align, as_json=options.json)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
