"""Train one stage of a system.

    e3d train --config=mini --stage=anchor --workdir=runs/mini --data=runs/records

Stages, in order: autoencoder and normals (either first), then anchor and interpolation. With --init=WEIGHTS a stage,
and the components that it needs, start from another weights folder. With --restart=10, a run that crashes is started
again, up to ten times.
"""

import functools
import os
import sys
from typing import Any

# The loader's processes do many small products at once; more threads each would only fight over the cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from e3d_jax.cli.flags import Flags, no_arguments


def define(flags: Flags) -> None:
    """Define the flags."""
    flags.string("stage", None, "The stage to train.", required=True)
    flags.string("workdir", None, "Where checkpoints, metrics and weights go; may be gs:// or s3://.", required=True)
    flags.string("init", None, "Weights folder to start from, such as 'e3d weights init' makes.")
    flags.strings("data", "Folder of record shards, as FOLDER or FOLDER@WEIGHT; WORKDIR/records if not given.")
    flags.string("heldout", None, "Folder of records of held-out objects to evaluate on.")
    flags.string("checkpoints", None, "Where checkpoints go instead of WORKDIR; may be gs://.")
    flags.metric_writers()
    flags.string("profile", None, "FIRST,LAST: write a trace of these steps, counted from 1.")
    flags.switch("distributed", False, "Call jax.distributed.initialize(); TPU pods and SLURM are detected.")
    flags.string("coordinator", None, "HOST:PORT of process 0, if it is not detected.")
    flags.integer("processes", None, "With --coordinator: how many processes there are.", at_least=1)
    flags.integer("process", None, "With --coordinator: the number of this one.")
    flags.integer("restart", 0, "How often to start the run again after a crash.")
    flags.config("mini")


def run(flags: Flags, arguments: list[str]) -> None:
    """Join the other processes, if any, and train."""
    import jax

    from e3d_jax import distributed, files
    from e3d_jax.training import goodput, restarts

    no_arguments(arguments)
    config = flags.parsed_config()
    if flags.restart:
        command = [sys.executable, "-m", "e3d_jax", "train", *flags.without("restart")]
        last_step = functools.partial(goodput.last_step, files.join(flags.workdir, flags.stage))
        if status := restarts.supervise(command, flags.restart, last_step):
            sys.exit(status if status > 0 else 128 - status)
        return
    jax.config.update("jax_threefry_partitionable", True)
    distributed.stable_cache_keys()
    distributed.join(flags.distributed, flags.coordinator, flags.processes, flags.process)
    with distributed.leaving_at_once():
        _train(flags, config)


def _train(flags: Flags, config: Any) -> None:
    """Train, as one of the processes of a run."""
    import jax

    from e3d_jax import files, stages, stores
    from e3d_jax.data import loader
    from e3d_jax.training import loop

    checkpoints = flags.checkpoints
    if not checkpoints and files.is_remote(flags.workdir):
        checkpoints = files.join(flags.workdir, flags.stage, "checkpoints")
    # What is only read, is written there without a copy, or holds for this host alone.
    apart = ["records/", *(f"{name}/{what}" for name in stages.STAGES for what in ("checkpoints/", "lock.json"))]
    with stores.mirrored(flags.workdir, without=apart, upload=jax.process_index() == 0) as workdir:
        loop.train(
            config,
            flags.stage,
            workdir,
            loader.parse_weights(flags.data or [f"{flags.workdir}/records"]),
            flags.init,
            heldout=flags.heldout,
            checkpoints=checkpoints,
            profile=_steps(flags.profile),
            loggers=flags.chosen_writers(),
        )


def _steps(profile: str | None) -> tuple[int, int] | None:
    """Return the steps of --profile."""
    if profile is None:
        return None
    try:
        first, last = map(int, profile.split(","))
    except ValueError as error:
        raise ValueError(f"--profile is {profile!r}; expected two steps, as in 10,12") from error
    return first, last
