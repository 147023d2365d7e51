"""e3d_jax: one image in, 32 consistent views and a textured 3D mesh out.

system = e3d_jax.load("mini")
result = system("picture.png")
"""

__version__ = "0.1.0"


def load(name_or_folder, config=None):
    """A ready system; see :func:`e3d_jax.system.load`."""
    from e3d_jax import system  # Not at the top: data workers import this package without the models.

    return system.load(name_or_folder, config)
