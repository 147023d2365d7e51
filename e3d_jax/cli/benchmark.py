"""Score a system on held-out synthetic objects, and optionally on real meshes, each from one image.

    e3d benchmark --out=DIR [--weights=mini] [--objects=40] [--nomeshes] [--real=DIR2]

Every object has one JSON file in --out and is skipped if it exists, so several processes can divide the objects by
ranges (--start), and the last call prints a table of all. --real is a folder with meshes/NAME.glb and front images
views/NAME/rgba_00.png.
"""

from e3d_jax.cli.flags import Flags, no_arguments


def define(flags: Flags) -> None:
    """Define the flags."""
    flags.target("out", "Folder for the scores.")
    flags.string("weights", "mini", "Bundled weights or a weights folder.")
    flags.integer("objects", 40, "Number of synthetic test objects.")
    flags.integer("start", 0, "Index of the first synthetic test object.")
    flags.switch("meshes", True, "Also reconstruct and score meshes (most of the run time).")
    flags.source("real", None, "Folder of real meshes and front images.")
    flags.integer("seed", 0, "Seed of the generated views.")
    flags.string("cache", None, "Folder of JAX's compilation cache.")


def run(flags: Flags, arguments: list[str]) -> None:
    """Run the benchmark."""
    import jax

    from e3d_jax import benchmark

    no_arguments(arguments)
    if flags.cache:
        jax.config.update("jax_compilation_cache_dir", flags.cache)
    benchmark.run(
        flags.weights,
        flags.out,
        objects=flags.objects,
        start=flags.start,
        meshes=flags.meshes,
        real=flags.real,
        seed=flags.seed,
    )
