"""The table of ``e3d weights verify``; test_models_parity and this file run all of its checks."""

import numpy as np
import pytest
import released

from e3d_jax import cli
from e3d_jax.weights import verify

ARRAYS = {name: np.load(released.FIXTURE / "calls.npz")[name] for name in ("image", "vae_mode", "vae_decoded")}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    return released.write_pipelines(tmp_path_factory.mktemp("pipelines"))


@pytest.fixture
def run(pipelines, tmp_path):
    def with_arrays(**arrays):
        np.savez(tmp_path / "recorded.npz", **arrays)
        options = [f"--{stage}={path}" for stage, path in pipelines.items()]
        cli.main(["weights", "verify", *options, f"--recorded={tmp_path / 'recorded.npz'}"])

    return with_arrays


def test_arrays_of_the_file_are_checked_and_no_others(run, capsys):
    run(**ARRAYS)
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [(line.split()[0], line.split()[-1]) for line in lines] == [("vae_mode", "pass"), ("vae_decoded", "pass")]


def test_a_difference_fails(run, capsys):
    with pytest.raises(SystemExit, match="1 of 2 arrays differ"):
        run(**ARRAYS | {"vae_decoded": ARRAYS["vae_decoded"] * 1.001})
    assert "FAIL" in capsys.readouterr().out


def test_a_file_without_known_arrays_is_refused(run):
    with pytest.raises(SystemExit, match="none of the arrays"):
        run(other=np.zeros(1))


def test_arrays_of_another_size_are_refused(run):
    with pytest.raises(SystemExit, match="vae_decoded has shape"):
        run(**ARRAYS | {"vae_decoded": ARRAYS["vae_decoded"][..., :32, :32]})


def test_arrays_of_another_rank_are_refused(run):
    with pytest.raises(SystemExit, match="cannot take the recorded clip1_pixels"):
        run(clip1_pixels=np.zeros(3, np.float32))


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 text"])
def test_a_file_of_something_else_is_refused(pipelines, tmp_path, content):
    (tmp_path / "recorded.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"is not an \.npz"):
        next(verify.verify(pipelines, tmp_path / "recorded.npz"))


def test_every_recorded_array_belongs_to_a_check():
    needed = {name for check in verify.CHECKS for name in check.needs}
    recorded = {name for file in ("calls", "samplers") for name in np.load(released.FIXTURE / f"{file}.npz")}
    assert {name for name in recorded if name.endswith(("_sample", "pixels", "image", "init_latents"))} <= needed
