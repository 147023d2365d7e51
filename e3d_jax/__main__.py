"""``python -m e3d_jax`` is the ``e3d`` command."""

from e3d_jax import cli

if __name__ == "__main__":
    cli.main()
