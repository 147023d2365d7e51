"""Processes find each other, and devices the type that suits them."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

from e3d_jax import distributed


@pytest.mark.parametrize(
    ("local", "given", "visible"),
    [("0", {}, "all"), ("3", {}, "all"), ("3", {"JAX_CUDA_VISIBLE_DEVICES": "0,1"}, "0,1")],
)
def test_a_process_under_slurm_has_the_gpus_that_slurm_shows_it(local, given, visible):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    slurm = {"JOB_ID": "1", "NTASKS": "1", "PROCID": "0", "LOCALID": local, "STEP_NODELIST": "localhost"}
    slurm = {f"SLURM_{name}": value for name, value in slurm.items()} | {"JAX_COORDINATOR_ADDRESS": address}
    code = "import jax; from e3d_jax import distributed; distributed.join(detect=True); "
    code += "print(jax.config.values['jax_cuda_visible_devices'])"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=pathlib.Path(__file__).parents[1],
        env=os.environ | slurm | given,
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip() == visible, run.stderr


def test_a_coordinator_alone_does_not_describe_the_processes():
    with pytest.raises(ValueError, match=r"belong together .*give all three"):
        distributed.join(coordinator="localhost:1")


@pytest.mark.parametrize(("platform", "dtype"), [("gpu", "bfloat16"), ("tpu", "bfloat16"), ("cpu", "float32")])
def test_accelerators_compute_in_bfloat16(platform, dtype):
    assert distributed.compute_dtype(platform) == dtype
