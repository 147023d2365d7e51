"""One process of a run: WORKDIR RECORDS STEPS DEVICES [PROCESSES PROCESS PORT]; a program of the tests."""

import os
import sys

workdir, records, steps, devices, *others = sys.argv[1:]
os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}

import jax  # noqa: E402 - after the environment that it reads.

if __name__ == "__main__":
    if others:
        processes, process, port = map(int, others)
        jax.distributed.initialize(f"localhost:{port}", processes, process)

    from e3d_jax.training import loop
    from tests import tiny

    config = tiny.config(steps=int(steps), checkpoint_every=1, log_every=1)
    loop.train("normals", config, workdir, {records: 1.0})
