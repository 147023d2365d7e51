import json

import numpy as np
import pytest
from flax import nnx
from safetensors import numpy as safetensors_numpy

from e3d_jax.models import layers
from e3d_jax.weights import diffusers

CONFIG = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 2,
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.5,
}


def released_tensors(module):
    """Return tensors in the released layout whose values count up, one count through all of them."""
    component, tensors, count = diffusers.component_of(CONFIG), {}, 0
    for path, parameter in diffusers.parameters(module).items():
        shape = parameter.shape
        shape = (shape[-1], shape[-2], *shape[:-2]) if path[-1] == "kernel" else shape
        values = np.arange(count, count + np.prod(shape), dtype=np.float32).reshape(shape)
        tensors[diffusers.tensor_name(path, component)], count = values, count + values.size
    return tensors


@pytest.fixture(scope="module")
def tensors():
    return released_tensors(diffusers.build(CONFIG, layers.Types(rngs=nnx.Rngs(0))))


@pytest.fixture
def folder(tmp_path, tensors):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    safetensors_numpy.save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_convolutions_change_layout(folder, tensors):
    kernel = diffusers.load(folder).encoder.conv_in.kernel[...]
    np.testing.assert_array_equal(kernel, tensors["encoder.conv_in.weight"].transpose(2, 3, 1, 0))


def test_linear_layers_change_layout(folder, tensors):
    kernel = diffusers.load(folder).decoder.mid_block.attentions[0].to_out.kernel[...]
    np.testing.assert_array_equal(kernel, tensors["decoder.mid_block.attentions.0.to_out.0.weight"].T)


def test_weights_have_the_requested_type(folder):
    module = diffusers.load(folder, param_dtype="bfloat16")
    assert module.encoder.conv_in.kernel.dtype == "bfloat16"


def test_shards_are_joined(folder, tensors):
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        safetensors_numpy.save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    kernel = diffusers.load(folder).encoder.conv_in.kernel[...]
    np.testing.assert_array_equal(kernel, tensors["encoder.conv_in.weight"].transpose(2, 3, 1, 0))


def test_old_names_of_attention_are_supported(folder, tensors):
    old = {name.replace(".to_q.", ".query.").replace(".to_out.0.", ".proj_attn."): t for name, t in tensors.items()}
    assert old.keys() != tensors.keys()
    safetensors_numpy.save_file(old, folder / "model.safetensors")
    kernel = diffusers.load(folder).decoder.mid_block.attentions[0].to_q.kernel[...]
    np.testing.assert_array_equal(kernel, tensors["decoder.mid_block.attentions.0.to_q.weight"].T)


def test_a_variant_of_the_files_is_not_mixed_in(folder, tensors):
    other = {name: tensor + 1 for name, tensor in tensors.items()}
    safetensors_numpy.save_file(other, folder / "model.fp16.safetensors")
    kernel = diffusers.load(folder).encoder.conv_in.kernel[...]
    np.testing.assert_array_equal(kernel, tensors["encoder.conv_in.weight"].transpose(2, 3, 1, 0))


def test_all_misfits_are_listed_at_once(folder, tensors):
    wrong = dict(tensors) | {"extra.weight": np.zeros(1, np.float32), "quant_conv.bias": np.zeros(5, np.float32)}
    del wrong["encoder.conv_in.bias"]
    safetensors_numpy.save_file(wrong, folder / "model.safetensors")
    with pytest.raises(ValueError, match="do not fit the Autoencoder") as error:
        diffusers.load(folder)
    for part in ("missing encoder.conv_in.bias", "unknown extra.weight", "quant_conv.bias has shape (5,)"):
        assert part in str(error.value)


def test_a_damaged_file_is_refused(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="damaged or incomplete, not a safetensors file"):
        diffusers.load(folder)


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no \*.safetensors"):
        diffusers.load(folder)


def test_a_damaged_configuration_is_refused(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not a JSON object"):
        diffusers.load(folder)


def test_an_unknown_component_is_refused():
    with pytest.raises(ValueError, match="describes a 'VQModel'; expected one of"):
        diffusers.component_of({"_class_name": "VQModel"})


def test_an_incomplete_configuration_is_refused():
    config = {name: value for name, value in CONFIG.items() if name != "latent_channels"}
    with pytest.raises(ValueError, match=r"config\.json of Autoencoder lacks 'latent_channels'"):
        diffusers.build(config, layers.Types(rngs=nnx.Rngs(0)))
