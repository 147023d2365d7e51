"""One image in, 32 consistent views and a textured 3D mesh out: ``e3d_jax.load("mini")("image.png")``."""

__version__ = "0.1.0"


def load(name_or_folder, config=None):
    """Load a system; see :func:`e3d_jax.system.load`."""
    from e3d_jax import system  # Not at the top: it would import everything with the first module.

    return system.load(name_or_folder, config)
