"""Weights survive the disk; what does not fit is named."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e3d_jax import stages
from e3d_jax.models import layers
from e3d_jax.weights import folder, tensors
from tests import tiny

COMPONENTS = {"autoencoder": {}, "normals": {}, "anchor": {}}
CONFIG = stages.parse_config({"size": 64, **COMPONENTS})


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


@pytest.fixture
def quantized(saved, tmp_path):
    folder.quantize(saved, tmp_path / "quantized")
    return tmp_path / "quantized"


def test_kernels_in_8_bits_are_read_to_within_half_a_step(tmp_path):
    exact = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    stored = tensors.quantized({"kernel": tensors.Tensor(exact.shape, exact.dtype, lambda: exact)})
    assert stored["kernel"].nbytes == exact.size
    tensors.write(tmp_path / "a.safetensors", stored)
    found = tensors.read_files([tmp_path / "a.safetensors"])["kernel"].read().astype(np.float32)
    half_step = np.abs(exact).max(0) / 127 / 2
    assert (np.abs(found - exact) <= half_step + 2**-8 * np.abs(exact)).all()


def test_what_is_no_kernel_keeps_its_bits(saved, quantized):
    exact, found = (folder.read(each, "normals")["layers.0.bias"].read() for each in (saved, quantized))
    np.testing.assert_array_equal(found, exact)


def test_an_output_without_weights_stays_0_in_8_bits():
    zero = tensors.Tensor((4, 2), np.dtype(np.float32), lambda: np.zeros((4, 2), np.float32))
    stored = tensors.quantized({"kernel": zero})
    assert np.isfinite(stored["kernel@scale"].read()).all() and not stored["kernel"].read().any()


def test_a_kernel_without_its_scales_is_refused(tmp_path):
    ints = tensors.Tensor((4, 2), tensors.INT8, lambda: np.zeros((4, 2), np.int8))
    tensors.write(tmp_path / "a.safetensors", {"kernel": ints})
    with pytest.raises(ValueError, match="kernel is in 8 bits, but its scales are missing; copy the files again"):
        tensors.read_files([tmp_path / "a.safetensors"])


def test_a_module_of_shapes_alone_can_be_filled(saved):
    module = nnx.eval_shape(Small)
    folder.load(saved, "normals", module)
    assert module.layers[1].kernel[...].shape == (2, 3)


@pytest.mark.parametrize("shapes_only", [True, False])
def test_parameters_keep_their_sharding(tmp_path, shapes_only):
    folder.save(tmp_path, "normals", Small(8), CONFIG)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("fsdp",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    module = nnx.eval_shape(lambda: Small(8))
    for layer in module.layers:
        kernel = jax.ShapeDtypeStruct((8, 3), jnp.float32, sharding=split)
        layer.kernel.set_value(kernel if shapes_only else jax.device_put(jnp.zeros((8, 3)), split))
    folder.load(tmp_path, "normals", module)
    assert module.layers[1].kernel.get_value().sharding == split
    expected = Small(8).layers[1].kernel[...].astype(jnp.bfloat16)
    np.testing.assert_array_equal(module.layers[1].kernel[...], expected)


@pytest.mark.parametrize("task", ["load", "copy"])
def test_one_tensor_at_a_time_is_in_memory(tmp_path, task):
    names = [f"{i:02d}" for i in range(40)]
    ones = np.ones((256, 256), np.float32)
    stored = {name: tensors.Tensor(ones.shape, ones.dtype, lambda: ones) for name in names}
    folder.write(tmp_path, "normals", stored, CONFIG, 10**9)
    shape = jax.ShapeDtypeStruct(ones.shape, jnp.bfloat16)
    module = nnx.Dict({name: nnx.Param(shape) for name in names})
    tracemalloc.start()
    if task == "load":
        folder.load(tmp_path, "normals", module)
    else:
        folder.write(tmp_path / "copy", "normals", folder.read(tmp_path, "normals"), CONFIG, 10**9)
    left, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Parameters on a processor may stay in the memory that they were cast to, where that happens to be aligned.
    parameters = len(names) * shape.size * shape.dtype.itemsize if task == "load" else 0
    assert peak - min(left, parameters) < 5 * ones.nbytes


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
    changed = {"normals": {"model": {"unet": {"heads": 2}}}}
    folder.save(saved, "anchor", Small(), stages.parse_config({"size": 64, **COMPONENTS, **changed}))
    assert folder.read_config(saved)["normals"] == CONFIG["normals"]


def test_every_misfit_is_named(saved):
    class Other(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([nnx.Linear(4, 3, rngs=nnx.Rngs(0))])
            self.more = nnx.Linear(1, 1, rngs=nnx.Rngs(0))

    with pytest.raises(ValueError) as error:
        folder.load(saved, "normals", Other())
    for part in (
        "missing more.bias",
        "missing more.kernel",
        "unknown layers.1.kernel",
        "layers.0.kernel has shape (2, 3)",
    ):
        assert part in str(error.value)


def test_a_truncated_file_is_named(saved):
    file = saved / "normals-00001-of-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"00001-of-00001\.safetensors is damaged"):
        folder.load(saved, "normals", Small())


@pytest.mark.parametrize("text", ["{", '{"magic": 1}'])
def test_a_damaged_config_is_named(saved, text):
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is damaged or of another version: "):
        folder.read_config(saved)


def test_the_config_comes_back_as_saved(saved):
    assert folder.read_config(saved) == CONFIG


def test_a_component_comes_back_as_its_config_has_it(tmp_path):
    config = tiny.system(32)
    module = stages.build(config, "normals", layers.Types(rngs=nnx.Rngs(0)))
    folder.save(tmp_path, "normals", module, config)
    found = nnx.state(folder.restore(tmp_path, "normals", config), nnx.Param)
    expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), nnx.state(module, nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_missing_component_is_named(saved):
    with pytest.raises(FileNotFoundError, match="anchor"):
        folder.load(saved, "anchor", Small())


def test_a_missing_folder_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match="WORKDIR/weights of a training run"):
        folder.resolve(tmp_path / "nowhere")
