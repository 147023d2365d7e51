"""Turn pictures into 32 views and a mesh each.

python infer.py IMAGE [IMAGE ...] --out=DIR [--normal=NORMAL.png] [--seed=0] [--config.KEY=VALUE ...]
"""

import os
import pathlib
import sys
import warnings

import jax
from absl import flags, logging

from e3d_jax import commands, outputs, system

# Beside this file, so that it can be called from any folder.
SETTINGS = pathlib.Path(__file__).resolve().parent / "configs/mini.py"
WEIGHTS = flags.DEFINE_string("weights", "mini", "Bundled weights, or a folder such as WORKDIR/weights of train.py.")
OUT = flags.DEFINE_string("out", None, "Where the results go, one folder an image.", required=True)
NORMAL = flags.DEFINE_string("normal", None, "Normal map of the (single) image; estimated when not given.")
SEED = flags.DEFINE_integer("seed", 0, "Of all randomness.", lower_bound=0, upper_bound=system.MAX_SEED)
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "e3d_jax"


def main(arguments: list[str]) -> None:
    """One image after another; a bad one does not stop the others."""
    logging.set_verbosity(logging.ERROR)
    warnings.formatwarning = lambda message, *_, **__: f"infer.py: {message}\n"
    pictures = [pathlib.Path(argument) for argument in arguments[1:]]
    if not pictures:
        sys.exit("infer.py: no image given; usage: python infer.py IMAGE [IMAGE ...] --out=DIR")
    if not OUT.value:
        sys.exit("infer.py: --out is empty; give a folder for the results")
    if NORMAL.value and len(pictures) > 1:
        sys.exit(f"infer.py: --normal goes with one image, {len(pictures)} are given")
    names = [picture.stem for picture in pictures]
    if twice := {name for name in names if names.count(name) > 1}:
        sys.exit(f"infer.py: several images are named {sorted(twice)}, which name their result folders; rename them")
    # Compiling takes longer than running a small system, so it is done once a machine.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    config = flags.FLAGS.config.to_dict()
    outputs.check_writable(OUT.value)
    model = system.load(WEIGHTS.value, config)
    failed = 0
    for picture in pictures:
        target = pathlib.Path(OUT.value) / picture.stem
        try:
            outputs.check_replaceable(target)
            result = model(picture, normal=NORMAL.value, seed=SEED.value, progress=True)
            outputs.write_result(target, result, seed=SEED.value, config=config)
        except (ValueError, OSError) as error:
            failed += 1
            print(f"infer.py: {picture}: {error}", file=sys.stderr)
        else:
            print(f"{picture}: see {target}/contact_sheet.png, {target}/mesh.glb")
    if failed:
        sys.exit(f"infer.py: {failed} of {len(pictures)} images failed")


if __name__ == "__main__":
    commands.run(main, "infer.py", str(SETTINGS))
