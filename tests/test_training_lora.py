"""Low-rank adaptation trains small matrices, and what they change is merged without a difference."""

import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from e3d_jax import config as config_lib
from e3d_jax import settings
from e3d_jax.training import export, loop, lora, sharding, state, steps
from e3d_jax.weights import adapters, folder
from tests import toy

RANK = {"lora": {"rank": 2, "layers": ("inner",)}}

pytestmark = pytest.mark.usefixtures("toy_stages")


def _tensors(path):
    return {name: tensor.read().astype(np.float32) for name, tensor in folder.read(path, "toy").items()}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Weights, the work folder of a run that adapts them, its config, and its dataset."""
    dataset = str(toy.write_records(tmp_path_factory.mktemp("records")))
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    loop.train(toy.config(steps=1), "toy", str(first), {dataset: 1.0})
    config = toy.config(steps=4, checkpoint_every=2, keep_last=2, **RANK)
    loop.train(config, "toy", str(second), {dataset: 1.0}, str(first / "weights"))
    return first / "weights", second, config, dataset


def test_only_the_chosen_layers_change_and_by_no_more_than_their_rank(tuned):
    before, after = _tensors(tuned[0]), _tensors(tuned[1] / "weights")
    assert {name for name in before if not np.array_equal(before[name], after[name])} == {"inner.kernel"}
    sizes = np.linalg.svd(after["inner.kernel"] - before["inner.kernel"], compute_uv=False)
    assert sizes[1] > 1e-4 and sizes[2] < 0.02 * sizes[0]  # Weights are rounded to bfloat16.


def test_a_run_with_adapters_saves_them_alone(tuned):
    _, workdir, config, _ = tuned
    assembly = _assembled(config)
    shapes = [x.shape for x in jax.tree.leaves(assembly.params)]
    assert sorted(shapes) == [(2, 4), (4, 2)]
    assert (workdir / "toy" / "lora" / adapters.FILE).is_file()


def _assembled(config):
    mesh = sharding.make_mesh(config.system.mesh)
    return steps.assemble(config, "toy", state.build_module(config, "toy", dtype="float32"), {}, mesh, "float32")


def test_adapters_change_nothing_at_first():
    config = toy.config(**RANK)
    plain, adapted = _assembled(toy.config()), _assembled(config)
    kernels = [nnx.state(each.merge(each.params, each.frozen)) for each in (plain, adapted)]
    jax.tree.map(np.testing.assert_array_equal, *kernels)


def test_a_run_with_adapters_continues_bit_for_bit(tuned, tmp_path):
    weights, workdir, config, dataset = tuned
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "toy" / "checkpoints" / "4")  # As if it had been stopped after step 2.
    shutil.rmtree(tmp_path / "run" / "weights")
    loop.train(config, "toy", str(tmp_path / "run"), {dataset: 1.0}, str(weights))
    one, other = _tensors(workdir / "weights"), _tensors(tmp_path / "run" / "weights")
    np.testing.assert_array_equal(one["inner.kernel"], other["inner.kernel"])


def test_any_checkpoint_is_merged_into_the_weights_that_it_began_with(tuned, tmp_path):
    weights, workdir, config, _ = tuned
    export.export(config, "toy", str(workdir / "toy" / "checkpoints"), None, str(tmp_path), str(weights))
    one, other = _tensors(workdir / "weights"), _tensors(tmp_path)
    np.testing.assert_array_equal(one["inner.kernel"], other["inner.kernel"])


def test_what_adapters_change_is_needed_to_begin_and_to_export(tuned, tmp_path):
    _, workdir, config, dataset = tuned
    with pytest.raises(ValueError, match=r"toy does not train its kernels, only low-rank .*; give weights .* --init"):
        loop.train(config, "toy", str(tmp_path), {dataset: 1.0})
    with pytest.raises(ValueError, match=r"checkpoints of the toy lack its kernels"):
        export.export(config, "toy", str(workdir / "toy" / "checkpoints"), None, str(tmp_path))


def test_learning_rate_multipliers_may_name_what_does_not_change():
    _assembled(toy.config(lr_multipliers={"outer": 2.0}, **RANK))


def test_layers_must_exist():
    with pytest.raises(ValueError, match=r"train\.lora\.layers names inr, but no linear layer"):
        _assembled(toy.config(lora={"rank": 2, "layers": ("inner", "inr")}))


def test_shapes_alone_have_shapes_of_adapters():
    module = nnx.eval_shape(lambda: state.build_module(toy.config(), "toy", dtype="float32"))
    found = lora.create(nnx.state(module), settings.parse(config_lib.LoraSettings, RANK["lora"]), 0)
    assert [x.shape for x in jax.tree.leaves(found)] == [(4, 2), (2, 4)]


def test_merged_adapters_are_the_weights_of_the_run(tuned, tmp_path):
    weights, workdir, *_ = tuned
    adapters.merge(weights, "toy", workdir / "toy" / "lora" / adapters.FILE, tmp_path)
    merged, trained = _tensors(tmp_path), _tensors(workdir / "weights")
    assert merged.keys() == trained.keys()
    for name in merged:
        np.testing.assert_allclose(merged[name], trained[name], rtol=2**-7)
