"""Turn images into 32 views and a mesh each.

    e3d infer IMAGE [IMAGE ...] --out=DIR [--weights=mini] [--normal=NORMAL.png] [--seed=0] [--config.SETTING=VALUE ...]
    e3d infer FRONT --view=right:IMAGE [--view=210:IMAGE ...] [--elevation=25] [--fov=35] --out=DIR

Several images are several objects, unless they are given as --view=DIRECTION:IMAGE: front, right, back, left, or
degrees to the right of the first image. Weights say how many of these they take. --elevation and --fov are one number
for all images of an object, or one for each, separated by commas; with "auto" the model is given none, and they are
found by fitting the images to the mesh (true elevations only if the weights are given cameras, see docs/inputs.md).
The mesh keeps the pixels of the images where they see it, unless --config.reconstruction.input_pixels=False.

--formats=obj,stl,ply,usdz writes the mesh in these formats too, --size=0.2 makes its longest side 0.2 meters, and
--up=y turns it for programs whose y axis is up.

Settings are those that the weights came with, unless --config names others.
"""

import pathlib
import sys

from absl import logging
from tqdm import tqdm

from e3d_jax.cli.flags import Flags, show_warnings


def define(flags: Flags) -> None:
    """Define the flags."""
    from e3d_jax import presets, system
    from e3d_jax.weights import folder

    flags.target("out", "Where the results go, one folder per image.")
    flags.string("weights", "mini", "Bundled weights, or a folder such as WORKDIR/weights of training.")
    flags.source("normal", None, "Normal map of the (single) image; estimated when not given.")
    flags.strings("view", "DIRECTION:IMAGE, a further image of the (single) object: right:side.png, or 210:other.png.")
    flags.string("elevation", "auto", "Degrees by which the cameras look down on the object.")
    flags.string("fov", "auto", "Horizontal field of view of the images in degrees.")
    flags.integer("seed", 0, "Seed of all randomness.", at_most=system.MAX_SEED)
    flags.mesh_files()
    if flags.given("config"):
        flags.config("mini")
    else:
        stored = folder.read_config(folder.resolve(flags.given("weights") or "mini"))
        flags.settings(presets.config_of(stored.to_dict()))


def run(flags: Flags, arguments: list[str]) -> None:
    """Process one image after another; a bad one does not stop the others."""
    from e3d_jax import distributed, outputs, stores, system

    logging.set_verbosity(logging.ERROR)
    show_warnings("infer")
    pictures = [pathlib.Path(stores.local(argument)) for argument in arguments]
    if not pictures:
        raise ValueError("no image given; usage: e3d infer IMAGE [IMAGE ...] --out=DIR")
    if not flags.out:
        raise ValueError("--out is empty; give a folder for the results")
    further = [_view(text) for text in flags.view or ()]
    if further and len(pictures) > 1:
        raise ValueError(f"--view goes with one image, {len(pictures)} are given")
    angles = {name: _angles(name, getattr(flags, name)) for name in ("elevation", "fov")}
    azimuths = [0.0, *(azimuth for azimuth, _ in further)]
    if flags.normal and len(pictures) > 1:
        raise ValueError(f"--normal goes with one image, {len(pictures)} are given")
    names = [picture.stem for picture in pictures]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"several images are named {sorted(twice)}, which name their result folders; rename them")
    distributed.keep_programs()
    config, mesh_files = flags.parsed_config(), flags.chosen_mesh_files()
    outputs.check_writable(flags.out)
    model = system.load(flags.weights, config)
    failed = 0
    for picture in pictures:
        target = pathlib.Path(flags.out) / picture.stem
        try:
            outputs.check_replaceable(target)
            given = [picture, *(path for _, path in further)]
            result = model(given, azimuths=azimuths, normal=flags.normal, seed=flags.seed, progress=True, **angles)
            outputs.write_result(target, result, seed=flags.seed, config=config, mesh_files=mesh_files)
        except (ValueError, OSError) as error:
            failed += 1
            tqdm.write(stores.named(f"e3d infer: {picture}: {error}"), sys.stderr)
        else:
            print(stores.named(f"{picture}: see {target}/contact_sheet.png, {target}/mesh.glb"))
    if failed:
        raise ValueError(f"{failed} of {len(pictures)} images failed")


def _view(text: str) -> tuple[float, pathlib.Path]:
    """Return azimuth in degrees and image of DIRECTION:IMAGE.

    Raises:
      ValueError: it has another form, or the direction is unknown.
    """
    from e3d_jax import cameras, stores

    direction, colon, path = text.partition(":")
    if not colon or not path:
        raise ValueError(f"--view is {text!r}; expected DIRECTION:IMAGE, as in right:side.png or 210:other.png")
    try:
        return cameras.direction(direction), pathlib.Path(stores.local(path))
    except ValueError as error:
        raise ValueError(f"--view is {text!r}: {error}") from error


def _angles(name: str, text: str) -> float | list[float | None] | None:
    """Return a number of degrees for all images, or one for each; None for "auto".

    Raises:
      ValueError: it is not a number.
    """
    try:
        values = [None if part == "auto" else float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--{name} is {text!r}; expected degrees, or auto") from None
    return values if len(values) > 1 else values[0]
