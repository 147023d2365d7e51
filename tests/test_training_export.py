"""Any checkpoint of a run becomes weights."""

import numpy as np
import pytest

from e3d_jax.training import export, loop
from e3d_jax.weights import folder
from tests import toy

pytestmark = pytest.mark.usefixtures("toy_stages")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The work folder of a run of three steps, with a checkpoint of each, its config and its dataset."""
    dataset = str(toy.write_records(tmp_path_factory.mktemp("records")))
    config, workdir = toy.config(steps=3, checkpoint_every=1, keep_last=3), tmp_path_factory.mktemp("finished")
    loop.train(config, "toy", str(workdir), {dataset: 1.0})
    return workdir, config, dataset


def _tensors(path):
    return {name: tensor.read() for name, tensor in folder.read(path, "toy").items()}


def _assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_the_newest_checkpoint_has_the_weights_of_the_run(finished, tmp_path):
    workdir, config, _ = finished
    assert export.export(config, "toy", str(workdir / "toy/checkpoints"), None, str(tmp_path)) == 3
    _assert_equal(_tensors(tmp_path), _tensors(workdir / "weights"))


def test_an_earlier_checkpoint_has_other_weights(finished, tmp_path):
    workdir, config, _ = finished
    assert export.export(config, "toy", str(workdir / "toy/checkpoints"), 2, str(tmp_path)) == 2
    assert not np.array_equal(_tensors(tmp_path)["inner.kernel"], _tensors(workdir / "weights")["inner.kernel"])


def test_checkpoints_may_be_given_relative_to_the_current_folder(finished, tmp_path, monkeypatch):
    workdir, config, _ = finished
    monkeypatch.chdir(workdir)
    assert export.export(config, "toy", "toy/checkpoints", None, str(tmp_path)) == 3


def test_a_folder_without_checkpoints_is_refused_and_not_created(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of checkpoints"):
        export.export(toy.config(), "toy", str(tmp_path / "typo"), None, str(tmp_path / "out"))
    assert not (tmp_path / "typo").exists()


def test_exported_weights_have_what_was_not_trained(finished, tmp_path):
    workdir, _, dataset = finished
    config, init = toy.config(freeze=["inner"], steps=1), str(workdir / "weights")
    loop.train(config, "toy", str(tmp_path), {dataset: 1.0}, init)
    export.export(config, "toy", str(tmp_path / "toy/checkpoints"), None, str(tmp_path / "out"), init)
    _assert_equal(_tensors(tmp_path / "weights"), _tensors(tmp_path / "out"))


def test_exporting_asks_for_what_was_not_trained(finished, tmp_path):
    workdir, _, _ = finished
    with pytest.raises(ValueError, match=r"lack its inner, which the run did not train; give .* with --init"):
        export.export(toy.config(freeze=["inner"]), "toy", str(workdir / "toy/checkpoints"), 3, str(tmp_path))
