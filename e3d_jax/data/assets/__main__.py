"""Make training records, or folders of views, of meshes (GLB, glTF, OBJ, PLY, STL) or of their renders.

    python -m e3d_jax.data.assets --meshes=DIR --out=DIR2 [--format=records] [--views=32] [--size=256] [--nonormals]
        [--poses=1] [--share=I/N]

``--format=records`` writes the records of :mod:`e3d_jax.data.records`, as the synthetic objects have;
``--format=folder`` one folder of views an object, with depths. ``--poses=N`` draws every mesh N times: as in its file,
then turned at random. Folders of views (:mod:`e3d_jax.views_io`) that were rendered elsewhere become records, too, if
their cameras are the ring's (:mod:`e3d_jax.cameras`), in its order.

What cannot be read is skipped with a line each. What is already in ``--out`` is kept, so the same call continues an
interrupted one and adds new meshes and poses.
"""

import os
import pathlib
import sys

from absl import app, flags

from e3d_jax import cameras, commands
from e3d_jax.data import assets, parallel

MESHES = flags.DEFINE_string("meshes", None, "Folder of meshes or folders of views, to any depth.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder of the results.", required=True)
FORMAT = flags.DEFINE_enum("format", "records", ["records", "folder"], "Training records, or a folder of views each.")
VIEWS = flags.DEFINE_integer("views", cameras.NUM_VIEWS, "Cameras on the ring; 32 or 8 in records.", lower_bound=1)
SIZE = flags.DEFINE_integer("size", 256, "Width and height of the pictures in pixels.", lower_bound=16)
NORMALS = flags.DEFINE_bool("normals", True, "Normal maps of the anchors (of every view if 8 does not divide --views).")
Y_UP = flags.DEFINE_bool("y_up", False, "OBJ, PLY and STL files are y up, front +z, as glTF files always are.")
POSES = flags.DEFINE_integer("poses", 1, "Of a mesh; the first is the file's, others are random.", lower_bound=1)
SHARE = flags.DEFINE_string("share", "0/1", "I/N, I from 0 on: do the I-th of N parts, as on the I-th of N machines.")
WORKERS = flags.DEFINE_integer("workers", None, "Processes; one a core when not given.", lower_bound=1)


def main(_) -> None:
    """Renders, then sums up."""
    folder = pathlib.Path(OUT.value) if FORMAT.value == "folder" else None
    settings = assets.Settings(VIEWS.value, SIZE.value, NORMALS.value, Y_UP.value, POSES.value, folder)
    share, workers = parallel.parse_share(SHARE.value), WORKERS.value or os.cpu_count() or 1
    rendered, kept, skipped = assets.write(MESHES.value, OUT.value, settings, workers, share)
    print(f"{rendered} rendered, {kept} there already, {skipped} skipped; see {OUT.value}")
    if not rendered and not kept:
        sys.exit(1)


if __name__ == "__main__":
    app.run(commands.told(main, "e3d_jax.data.assets"))
