"""Train one stage of a system.

    python train.py --config=configs/mini.py --stage=anchor --workdir=runs/mini --records=runs/records

Stages, in order: autoencoder and normals (either first), then anchor and interpolation. With --init=WEIGHTS a stage,
and the components that it needs, start from another weights folder.
"""

import os
import typing

# The loader's processes do many small products at once; more threads each would only fight over the cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
from absl import flags

from e3d_jax import commands
from e3d_jax.data import loader
from e3d_jax.models import build
from e3d_jax.training import loop, sharding

STAGE = flags.DEFINE_enum("stage", None, build.COMPONENTS, "The stage to train.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and weights go.", required=True)
INIT = flags.DEFINE_string("init", None, "Weights folder to start from, as `python -m e3d_jax.weights init` makes it.")
RECORDS = flags.DEFINE_multi_string("records", None, "Folder of record shards, as FOLDER or FOLDER@SHARE; repeatable.")
UNSEEN = flags.DEFINE_string("unseen", None, "Folder of records to evaluate on, which are never trained on.")
CHECKPOINTS = flags.DEFINE_string("checkpoints", None, "Where checkpoints go instead of WORKDIR; may be gs://.")
PROFILE = flags.DEFINE_list("profile", None, "FIRST,LAST: write a trace of these steps, counted from 1.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes; a pod or SLURM says which.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where nothing else says so.")
PROCESSES = flags.DEFINE_integer("processes", None, "With --coordinator: how many processes there are.")
PROCESS = flags.DEFINE_integer("process", None, "With --coordinator: the number of this one.")


def _profiled() -> tuple[int, int] | None:
    """The steps of --profile."""
    if PROFILE.value is None:
        return None
    try:
        first, last = map(int, PROFILE.value)
    except ValueError as error:
        raise ValueError(f"--profile is {','.join(PROFILE.value)!r}; expected two steps, as in 10,12") from error
    return first, last


def _join() -> None:
    """Finds the other processes, if there are any; each computes on all the GPUs that it can see."""
    given = (COORDINATOR.value, PROCESSES.value, PROCESS.value)
    if given != (None, None, None):
        if None in given:
            raise ValueError("--coordinator, --processes and --process belong together; give all three")
        jax.distributed.initialize(*given)
    elif DISTRIBUTED.value or int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise ValueError(
                f"nothing here says which processes belong together ({error}); give --coordinator, --processes and "
                "--process"
            ) from error
    # Under SLURM, JAX would leave a process the one GPU whose number is that of the process on its node.
    if "JAX_LOCAL_DEVICE_IDS" not in os.environ:
        for name in ("jax_cuda_visible_devices", "jax_rocm_visible_devices"):
            jax.config.update(name, os.environ.get(name.upper(), "all"))


def main(_) -> None:
    """Reads the flags and trains."""
    for folder in (WORKDIR.value, INIT.value, UNSEEN.value, *(RECORDS.value or ())):
        if folder and "://" in folder:
            raise ValueError(f"{folder} is no local folder; mount the bucket: only --checkpoints may be elsewhere")
    jax.config.update("jax_threefry_partitionable", True)
    sharding.stable_cache_keys()
    _join()
    loop.train(
        typing.cast(loader.Stage, STAGE.value),
        flags.FLAGS.config.to_dict(),
        WORKDIR.value,
        loader.parse_shares(RECORDS.value or [f"{WORKDIR.value}/records"]),
        INIT.value,
        unseen=UNSEEN.value,
        checkpoints=CHECKPOINTS.value,
        profile=_profiled(),
    )


if __name__ == "__main__":
    commands.run(main, "train.py", "configs/mini.py")
