"""Draw training records."""

import contextlib
import dataclasses

from e3d_jax.cli.flags import Command, Flags


def _common(flags: Flags) -> None:
    flags.string("out", None, "Folder of the results.", required=True)
    flags.integer("size", None, "Width and height of the images in pixels; the config's when not given.", at_least=16)
    flags.integer(
        "inputs", None, "Input images per object from cameras of their own; the config's inputs.count when not given."
    )
    flags.integer("workers", None, "Processes; one per core when not given.", at_least=1)
    flags.string("shard", "0/1", "I/N: do the I-th of N parts of the work, counted from 0.")
    flags.runner()
    flags.config("mini")


def _rig(flags: Flags, *, normals: bool = True):
    """Return the cameras that the flags ask for."""
    from e3d_jax.data import records

    config = flags.parsed_config()
    layout, views = config.layout, flags.views or config.layout.num_views
    if views not in (layout.num_views, layout.num_anchors):
        raise ValueError(
            f"--views is {views}; records hold the {layout.num_views} views of the layout, or its "
            f"{layout.num_anchors} anchors"
        )
    anchors_only = views == layout.num_anchors < layout.num_views
    return records.Rig.of_layout(layout, flags.size or config.size, anchors_only=anchors_only, normals=normals)


def _inputs(flags: Flags):
    """Return the input images that the flags ask for."""
    chosen = flags.parsed_config().system.inputs
    return chosen if flags.inputs is None else dataclasses.replace(chosen, count=flags.inputs)


def define_synthetic(flags: Flags) -> None:
    """Define the flags of ``synthetic``."""
    flags.integer("objects", None, "Number of objects.", at_least=1, required=True)
    flags.integer("seed", 0, "Seed of the sequence of objects.")
    flags.choice("split", "train", ["train", "test"], "The two splits share no object.")
    flags.integer(
        "views",
        None,
        "All views of the layout, or as many as it has anchors: enough for all stages but the interpolation.",
    )
    flags.integer("batch", 64, "Objects drawn per call of the device.", at_least=1)
    _common(flags)


def run_synthetic(flags: Flags, arguments: list[str]) -> None:
    """Draw synthetic objects."""
    from e3d_jax.data import engine
    from e3d_jax.data.synthetic import jobs

    jobs.write_records(
        flags.out,
        flags.objects,
        _rig(flags),
        inputs=_inputs(flags),
        split=flags.split,
        seed=flags.seed,
        batch=flags.batch,
        workers=flags.workers,
        shard=engine.parse_shard(flags.shard),
        runner=flags.chosen_runner(arguments),
    )


def define_assets(flags: Flags) -> None:
    """Define the flags of ``assets``."""
    flags.source("meshes", None, "Folder of meshes or of folders of views, to any depth.", required=True)
    flags.choice("format", "records", ["records", "folder"], "Training records, or a folder of views per object.")
    flags.integer("views", None, "Cameras: all of the layout or its anchors; any number with --format=folder.")
    flags.switch("normals", True, "Draw normal maps of the anchors.")
    flags.switch("y_up", False, "OBJ, PLY and STL files are y up, front +z, as glTF files always are.")
    flags.integer("poses", 1, "Poses rendered per mesh: the original, and random rotations.", at_least=1)
    _common(flags)


def run_assets(flags: Flags, arguments: list[str]) -> None:
    """Draw meshes."""
    from e3d_jax import stores
    from e3d_jax.data import assets, engine, records

    more = {"runner": flags.chosen_runner(arguments)} if flags.format == "records" else {}
    if flags.format == "folder":
        if flags.engine == "beam" or arguments:
            raise ValueError("--format=folder is made on this machine; drop --engine=beam and its options")
        config = flags.parsed_config()
        views = flags.views or config.layout.num_views
        anchors = views if views % config.layout.num_anchors else config.layout.num_anchors
        layout = dataclasses.replace(config.layout, num_views=views, num_anchors=anchors)
        rig = records.Rig.of_layout(layout, flags.size or config.size, normals=flags.normals)
    else:
        rig = _rig(flags, normals=flags.normals)
    settings = assets.RenderSettings(rig, y_up=flags.y_up, poses=flags.poses, inputs=_inputs(flags))
    write = assets.write_folders if flags.format == "folder" else assets.write_records
    shard = engine.parse_shard(flags.shard)
    with stores.mirrored(flags.out) if flags.format == "folder" else contextlib.nullcontext(flags.out) as out:
        counts = write(flags.meshes, out, settings, workers=flags.workers, shard=shard, **more)
    flawed = f" ({counts.flawed} with warnings)" if counts.flawed else ""
    print(f"{counts.made} rendered{flawed}, {counts.already} there already, {counts.skipped} skipped; see {flags.out}")
    if not counts.made and not counts.already:
        raise ValueError(f"nothing could be rendered of {flags.meshes}; the lines above say why")


SUBCOMMANDS = {
    "synthetic": Command(
        define_synthetic,
        run_synthetic,
        "Draw training records of synthetic objects.\n\n"
        "e3d data synthetic --out=DIR --objects=N [--seed=0] [--split=train] [--size=128] [--views=32]\n"
        "    [--inputs=0] [--shard=I/N] [--engine=beam [-- OPTIONS OF BEAM]]\n\n"
        "Objects that are in --out are kept, so the same call continues an interrupted one, and a larger --objects\n"
        "extends a dataset. Several machines or devices share the work by --shard=I/N and one folder.",
    ),
    "assets": Command(
        define_assets,
        run_assets,
        "Draw training records, or folders of views, of meshes (GLB, glTF, OBJ, PLY, STL) or of their renders.\n\n"
        "e3d data assets --meshes=DIR --out=DIR2 [--format=records] [--views=32] [--size=128] [--nonormals]\n"
        "    [--poses=1] [--inputs=0] [--shard=I/N] [--engine=beam [-- OPTIONS OF BEAM]]\n\n"
        "--format=folder writes one folder of views per object, with depths. --poses=N draws every mesh N times: as\n"
        "in its file, then turned at random. Folders of views that were rendered elsewhere become records, too, if\n"
        "their cameras are those of the layout, in its order; a folder of views may hold input images from any\n"
        "cameras in its folder 'inputs'. What cannot be read is skipped with a line each, a texture that cannot be\n"
        "loaded is a warning (docs/formats.md says what is read), and\n"
        "what is already in --out is kept, so the same call continues an interrupted one and adds new meshes.",
    ),
}
