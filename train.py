"""Train one stage of a system.

    python train.py --config=configs/mini.py --stage=anchor --workdir=runs/mini --records=runs/records

Stages, in order: autoencoder and normals (either first), then anchor and interpolation.
"""

import os
import sys
import typing

# The loader's processes do many small products at once; more threads each would only fight over the cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from e3d_jax.data import loader
from e3d_jax.models import build
from e3d_jax.training import loop

CONFIG = config_flags.DEFINE_config_file("config", "configs/mini.py", "The system to train.")
STAGE = flags.DEFINE_enum("stage", None, build.COMPONENTS, "The stage to train.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and weights go.", required=True)
RECORDS = flags.DEFINE_string("records", None, "Folder of record shards; WORKDIR/records when not given.")


def main(_) -> None:
    """Reads the flags and trains."""
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_threefry_partitionable", True)
    config = CONFIG.value.to_dict()
    stage = typing.cast(loader.Stage, STAGE.value)
    try:
        loop.train(stage, config, WORKDIR.value, RECORDS.value or f"{WORKDIR.value}/records")
    except (ValueError, OSError) as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    app.run(main)
