"""Train one stage of a system: short for ``e3d train``."""

import sys

from e3d_jax import cli

if __name__ == "__main__":
    cli.main(["train", *sys.argv[1:]])
