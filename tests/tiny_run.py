"""One process of a run of the toy stage: WORKDIR DATASET STEPS DEVICES [PROCESSES PROCESS PORT]; used by tests."""

import os
import sys

workdir, dataset, steps, devices, *others = sys.argv[1:]
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
    config = toy.config(steps=int(steps), checkpoint_every=1, log_every=1)
    loop.train(config, "toy", workdir, {dataset: 1.0})
