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
    with pytest.raises(ValueError, match=r"lacks 'projection_class_embeddings_input_dim'"):
        diffusers.build({"_class_name": "UNetMV2DConditionModel"}, layers.Types(rngs=nnx.Rngs(0)))


def test_entries_that_are_left_out_have_the_defaults_of_diffusers():
    config = {name: value for name, value in CONFIG.items() if name not in ("scaling_factor", "latent_channels")}
    module = nnx.eval_shape(lambda: diffusers.build(config, layers.Types(rngs=nnx.Rngs(0))))
    assert module.scaling_factor == 0.18215 and module.quant_conv.kernel.shape[-1] == 2 * 4


def test_an_entry_that_is_null_counts_as_left_out():
    assert diffusers.complete(CONFIG | {"scaling_factor": None})["scaling_factor"] == 0.18215


def test_a_configuration_of_a_whole_clip_describes_its_image_encoder():
    vision = {"hidden_size": 1024, "num_hidden_layers": 24, "projection_dim": 512}
    config = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 768, "vision_config": vision}
    found = diffusers.complete(config)
    assert diffusers.kind_of(config) == "CLIPVisionModelWithProjection"
    assert (found["hidden_size"], found["num_channels"], found["projection_dim"]) == (1024, 3, 768)


def test_a_configuration_without_a_class_is_refused():
    with pytest.raises(ValueError, match="names no class"):
        diffusers.component_of({})


def test_names_of_a_file_that_fits_nowhere_are_cut_at_ten(folder, tensors):
    safetensors_numpy.save_file(
        {f"other.{name}": value for name, value in zip("abcdefghijklm", tensors.values(), strict=False)},
        folder / "model.safetensors",
    )
    with pytest.raises(ValueError, match=r"and \d+ more$") as error:
        diffusers.load(folder)
    assert str(error.value).count("missing") + str(error.value).count("unknown") == 10


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "ema.", "module._orig_mod.", "unet."])
def test_a_prefix_of_all_names_is_taken_off(folder, tensors, prefix):
    safetensors_numpy.save_file({prefix + name: value for name, value in tensors.items()}, folder / "model.safetensors")
    assert diffusers.load(folder).encoder.conv_in.kernel[...].any()


def test_a_prefix_is_taken_off_when_a_tensor_is_missing(folder, tensors):
    found = {f"module.{name}": value for name, value in tensors.items() if name != "quant_conv.bias"}
    safetensors_numpy.save_file(found, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"to it: missing quant_conv\.bias$"):
        diffusers.load(folder)


def test_the_ema_is_used_where_a_file_has_both(folder, tensors):
    both = {name: np.zeros_like(value) for name, value in tensors.items()}
    both |= {f"ema.{name}": value for name, value in tensors.items()} | {"ema.num_updates": np.ones(1, np.int64)}
    safetensors_numpy.save_file(both, folder / "model.safetensors")
    with pytest.warns(UserWarning, match=r"the network 2 times; using ema\.\*"):
        assert diffusers.load(folder).encoder.conv_in.kernel[...].any()


def test_two_copies_of_which_none_is_the_ema_are_refused(folder, tensors):
    both = {f"{copy}.{name}": value for name, value in tensors.items() for copy in ("left", "right")}
    safetensors_numpy.save_file(both, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"2 times: left\.\*, right\.\*; keep one"):
        diffusers.load(folder)
