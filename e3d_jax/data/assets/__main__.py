"""Make training records, or folders of views, of meshes (GLB, glTF, OBJ, PLY, STL) or of their renders.

    python -m e3d_jax.data.assets --meshes=DIR --out=DIR2 [--format=records] [--views=32] [--size=256] [--nonormals]
        [--poses=1] [--shard=I/N]

``--format=records`` writes the records of :mod:`e3d_jax.data.records`, like those of synthetic objects;
``--format=folder`` one folder of views per object, with depths. ``--poses=N`` draws every mesh N times: as in its file,
then turned at random. Folders of views (:mod:`e3d_jax.views_io`) that were rendered elsewhere become records, too, if
their cameras are the ring's (:mod:`e3d_jax.cameras`), in its order.

What cannot be read is skipped, with one line each. What is already in ``--out`` is kept, so the same call continues an
interrupted one and adds new meshes and poses.
"""

import sys

from absl import app, flags

from e3d_jax import cameras, commands
from e3d_jax.data import assets, engine

MESHES = flags.DEFINE_string("meshes", None, "Folder of meshes or folders of views, to any depth.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder of the results.", required=True)
FORMAT = flags.DEFINE_enum("format", "records", ["records", "folder"], "Training records, or one folder per object.")
VIEWS = flags.DEFINE_integer("views", cameras.NUM_VIEWS, "Cameras on the ring; 32 or 8 in records.", lower_bound=1)
SIZE = flags.DEFINE_integer("size", 256, "Width and height of the images in pixels.", lower_bound=16)
NORMALS = flags.DEFINE_bool("normals", True, "Normal maps of the anchors (of every view if 8 does not divide --views).")
Y_UP = flags.DEFINE_bool("y_up", False, "OBJ, PLY and STL files are y up, front +z, as glTF files always are.")
POSES = flags.DEFINE_integer("poses", 1, "Poses per mesh: the original plus random rotations.", lower_bound=1)
SHARD = flags.DEFINE_string("shard", "0/1", "Part of the work to do: I/N is the I-th of N parts, the first 0/N.")
WORKERS = flags.DEFINE_integer("workers", None, "Processes; by default one per core.", lower_bound=1)


def main(_) -> None:
    """Render, then sum up."""
    anchors = cameras.anchors_of(VIEWS.value)
    normal_views = anchors if NORMALS.value else anchors[:0]
    settings = assets.RenderSettings(cameras.ring(SIZE.value, VIEWS.value), normal_views, Y_UP.value, POSES.value)
    write = assets.write_folders if FORMAT.value == "folder" else assets.write_records
    shard = engine.parse_shard(SHARD.value)
    counts = write(MESHES.value, OUT.value, settings, workers=WORKERS.value, shard=shard)
    print(f"{counts.made} rendered, {counts.already} there already, {counts.skipped} skipped; see {OUT.value}")
    if not counts.made and not counts.already:
        sys.exit(1)


if __name__ == "__main__":
    app.run(commands.told(main, "e3d_jax.data.assets"))
