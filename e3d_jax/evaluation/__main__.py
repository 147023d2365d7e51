"""Compares two folders of views, or two mesh files.

Views: mean PSNR (dB), SSIM and silhouette IoU over the views that both hold, and the mean angle of normal maps.
Meshes (.glb, .ply, .obj): Chamfer distance and F-scores in object units, volume IoU, normal consistency.
"""

import argparse
import json
import sys

from e3d_jax.evaluation import report


def main() -> None:
    """Parses the options, prints a table and, on request, one JSON line."""
    parser = argparse.ArgumentParser(
        "python -m e3d_jax.evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pred", required=True, help="folder of views or mesh file to judge")
    parser.add_argument("--true", required=True, help="folder of views or mesh file to judge it by")
    parser.add_argument("--align", action="store_true", help="fit scale, translation and yaw of the mesh first")
    parser.add_argument("--json", action="store_true", help="print one line of JSON after the table")
    options = parser.parse_args()
    try:
        scores = report.compare(options.pred, options.true, align=options.align)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(report.table(scores))
    if options.json:
        print(json.dumps({"pred": options.pred, "true": options.true, "aligned": options.align, **scores}))


if __name__ == "__main__":
    main()
