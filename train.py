"""Train a stage of a system.

    python train.py --config=configs/mini.py --stage=anchor --workdir=runs/mini --records=runs/records

Order of the stages: autoencoder and normals (either first), then anchor and interpolation. With --init=WEIGHTS a stage,
and the components that it needs, start from another weights folder.
"""

import os

# Loader processes compute many small products at once; more threads in each would only compete for the cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
from absl import flags

from e3d_jax import commands, distributed, stages
from e3d_jax.data import loader
from e3d_jax.training import loop

STAGE = flags.DEFINE_enum("stage", None, list(stages.STAGES), "Stage to train.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics and weights.", required=True)
INIT = flags.DEFINE_string("init", None, "Weights folder to start from, or a name of bundled weights.")
RECORDS = flags.DEFINE_multi_string(
    "records", None, "Dataset (folder of record shards), as FOLDER or FOLDER@WEIGHT; repeat it for a mixture."
)
HELDOUT = flags.DEFINE_string("heldout", None, "Dataset to evaluate on, which is not trained on.")
CHECKPOINTS = flags.DEFINE_string("checkpoints", None, "Folder for checkpoints instead of WORKDIR; may be gs://.")
PROFILE = flags.DEFINE_list("profile", None, "FIRST,LAST: write a trace of these steps, counted from 1.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join other processes; TPU pods and SLURM describe them.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, if nothing describes the processes.")
PROCESSES = flags.DEFINE_integer("processes", None, "With --coordinator: number of processes.")
PROCESS = flags.DEFINE_integer("process", None, "With --coordinator: index of this process.")


def parse_profile(values: list[str] | None) -> tuple[int, int] | None:
    """Return the first and the last of the steps to trace.

    Raises:
      ValueError: there are not two integers.
    """
    if values is None:
        return None
    try:
        first, last = map(int, values)
    except ValueError as error:
        raise ValueError(f"--profile is {','.join(values)!r}; expected two steps, such as 10,12") from error
    return first, last


def main(_) -> None:
    """Read the flags and train."""
    jax.config.update("jax_threefry_partitionable", True)
    distributed.stable_cache_keys()
    distributed.join_processes(DISTRIBUTED.value, COORDINATOR.value, PROCESSES.value, PROCESS.value)
    loop.train(
        stages.parse_config(flags.FLAGS.config.to_dict()),
        STAGE.value,
        WORKDIR.value,
        loader.parse_weights(RECORDS.value or [f"{WORKDIR.value}/records"]),
        INIT.value,
        heldout=HELDOUT.value,
        checkpoints=CHECKPOINTS.value,
        profile=parse_profile(PROFILE.value),
    )


if __name__ == "__main__":
    commands.run(main, "train.py", "configs/mini.py")
