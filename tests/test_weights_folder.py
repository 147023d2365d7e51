"""Weights survive the disk; what does not fit is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e3d_jax.weights import folder

CONFIG = {"normals": {"model": {"width": 2}}, "anchor": {"model": {}}}


class Small(nnx.Module):
    def __init__(self, width: int = 2):
        self.layers = nnx.List([nnx.Linear(width, 3, rngs=nnx.Rngs(i)) for i in range(2)])


@pytest.fixture
def saved(tmp_path):
    folder.save(tmp_path, "normals", Small(), CONFIG)
    return tmp_path


def test_tensors_come_back_rounded_to_bfloat16(saved):
    module = Small()
    expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), nnx.state(module, nnx.Param))
    folder.load(saved, "normals", module)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(module, nnx.Param), expected)


def test_a_module_of_shapes_alone_can_be_filled(saved):
    module = nnx.eval_shape(Small)
    folder.load(saved, "normals", module)
    assert module.layers[1].kernel[...].shape == (2, 3)


def test_large_components_are_split(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "SHARD_BYTES", 13)
    folder.save(tmp_path, "normals", Small(), CONFIG)
    assert len(list(tmp_path.glob("normals-*-of-00004.safetensors"))) == 4
    folder.load(tmp_path, "normals", Small())


def test_saving_again_leaves_no_stale_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "SHARD_BYTES", 13)
    folder.save(tmp_path, "normals", Small(), CONFIG)
    monkeypatch.undo()
    folder.save(tmp_path, "normals", Small(), CONFIG)
    assert [f.name for f in tmp_path.glob("*.safetensors")] == ["normals-00001-of-00001.safetensors"]


def test_stages_saved_before_keep_their_config(saved):
    folder.save(saved, "anchor", Small(), {**CONFIG, "normals": {"model": {"width": 9}}})
    assert folder.read_config(saved)["normals"] == CONFIG["normals"]


def test_every_misfit_is_named(saved):
    class Other(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([nnx.Linear(4, 3, rngs=nnx.Rngs(0))])
            self.more = nnx.Linear(1, 1, rngs=nnx.Rngs(0))

    with pytest.raises(ValueError) as error:
        folder.load(saved, "normals", Other())
    for part in ("missing more.bias", "missing more.kernel", "left over layers.1.kernel", "layers.0.kernel is (2, 3)"):
        assert part in str(error.value)


def test_a_truncated_file_is_named(saved):
    file = saved / "normals-00001-of-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"00001-of-00001\.safetensors is damaged"):
        folder.load(saved, "normals", Small())


def test_a_missing_component_is_named(saved):
    with pytest.raises(FileNotFoundError, match="anchor"):
        folder.load(saved, "anchor", Small())


def test_a_missing_folder_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train\.py"):
        folder.resolve(tmp_path / "nowhere")
