"""One process of a run of the toy stage, used by tests.

Arguments: WORKDIR DATASET STEPS DEVICES DATA FSDP [PROCESSES PROCESS PORT].
"""

import os
import sys

workdir, dataset, steps, devices, data, fsdp, *others = sys.argv[1:]
os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}

if __name__ == "__main__":
    from e3d_jax import distributed

    if others:
        processes, process, port = map(int, others)
        distributed.join(False, f"localhost:{port}", processes, process)

    import pytest

    from e3d_jax.training import loop
    from tests import toy

    toy.register(pytest.MonkeyPatch())
    mesh = {"mesh": {"data": int(data), "fsdp": int(fsdp)}}
    config = toy.config(system=mesh, batch_size=8, steps=int(steps), checkpoint_every=1, log_every=1)
    with distributed.leaving_at_once():
        loop.train(config, "toy", workdir, {dataset: 1.0})
