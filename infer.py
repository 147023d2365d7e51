"""Turn images into 32 views and a mesh each: short for ``e3d infer``."""

import sys

from e3d_jax import cli

if __name__ == "__main__":
    cli.main(["infer", *sys.argv[1:]])
