"""The processes and devices of a run: joining and leaving processes, and what suits the devices at hand."""

import contextlib
import os
import sys
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from e3d_jax import files

# Seconds without a sign of life after which a process is given up, and with it the run.
SILENCE = 30
# Exit status of a process that may succeed if it is run again.
RETRY = os.EX_TEMPFAIL


def join(
    detect: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Connect to the other processes of a run, if there are any; each computes on all GPUs that it can see.

    If one of them dies, JAX ends the others within :data:`SILENCE` seconds. Call it before anything else uses JAX.

    Args:
      detect: join even where SLURM does not report several tasks; the environment (a TPU pod, SLURM, MPI) describes the
        processes.
      coordinator: HOST:PORT of process 0, for environments that describe nothing; needs the next two.
      num_processes: how many processes there are.
      process_id: number of this one, from 0 on.

    Raises:
      ValueError: only some of the last three are given, or nothing describes the processes.
    """
    given = (coordinator, num_processes, process_id)
    if given != (None, None, None):
        if None in given:
            raise ValueError(
                "the coordinator, the number of processes and the number of this one belong together "
                "(--coordinator, --processes, --process); give all three"
            )
        jax.distributed.initialize(*given, heartbeat_timeout_seconds=SILENCE)
    elif detect or int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=SILENCE)
        except ValueError as error:
            raise ValueError(
                f"the environment does not describe the processes of this run ({error}); give --coordinator, "
                "--processes and --process"
            ) from error
    # Under SLURM, JAX would leave each process only the GPU whose number is the process's own on its node.
    if "JAX_LOCAL_DEVICE_IDS" not in os.environ:
        for name in ("jax_cuda_visible_devices", "jax_rocm_visible_devices"):
            jax.config.update(name, os.environ.get(name.upper(), "all"))


def compute_dtype(platform: str | None = None) -> str:
    """Return the type to compute in: bfloat16 on GPUs and TPUs, float32 elsewhere.

    Args:
      platform: of the devices; JAX's default backend when not given.
    """
    return "bfloat16" if (platform or jax.default_backend()) in ("gpu", "cuda", "rocm", "tpu") else "float32"


def keep_programs() -> None:
    """Keep compiled programs on disk, where ``JAX_COMPILATION_CACHE_DIR`` says or in the user's cache.

    Compiling takes longer than running a small system, so it is done once per machine.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(files.user_cache()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def stable_cache_keys() -> None:
    """Let a process reuse from the compilation cache what another process compiled for several GPUs.

    Fused attention registers its own partitioning rule, whose memory address would otherwise be part of the cache key.
    Without it, options of the attention that do not show in the shapes of its operands are not part of the key either:
    after adding one, such as a mask, empty the cache.
    """
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)


def total(count: int) -> int:
    """Return the sum of a number over all processes, each of which must call this."""
    return count if jax.process_count() == 1 else int(multihost_utils.process_allgather(np.array(count)).sum())


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """End this process at once if the block fails and there are others.

    They would wait for it, and it for them when Python ends. JAX ends them when it is gone.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        reason, known = " ".join(str(error).split()), isinstance(error, OSError | ValueError)
        if not known:
            reason = f"{type(error).__name__} ({reason[:300]}); another process may be gone; run all of them again"
        print(f"process {jax.process_index()} of {jax.process_count()} ends: {reason}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(1 if known else RETRY)
