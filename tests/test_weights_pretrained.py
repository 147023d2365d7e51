"""Initialization of the full-size stages from pretrained models: which layers are copied, widened and new."""

import json

import numpy as np
import pytest
import released
from safetensors import numpy as safetensors_numpy

from e3d_jax import stages
from e3d_jax.presets import envision3d
from e3d_jax.weights import diffusers, folder, pretrained, tensors, variants

CONFIG = stages.parse_config(envision3d.get_config().to_dict())
ADDED = ("_normal.", "joint_mid.", "class_embedding.")


def shrink(path, keep_inputs, **changes):
    """Turn a released U-Net into one like that of the pretrained model; returns its tensors."""
    (file,) = variants.find_files(path)
    old = {name: tensor.read() for name, tensor in tensors.read_files([file]).items()}
    old = {name: tensor for name, tensor in old.items() if not any(part in name for part in ADDED)}
    old["conv_in.weight"] = np.ascontiguousarray(old["conv_in.weight"][:, :keep_inputs])
    safetensors_numpy.save_file(old, file)
    config = diffusers.read_config(path) | changes
    (path / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return old


@pytest.fixture(scope="module")
def anchor(tmp_path_factory):
    """The U-Net of the pretrained model, the tensors of the stage initialized from it, and its weights folder."""
    root = tmp_path_factory.mktemp("anchor")
    pipeline = released.write_pipelines(root)["anchor"]
    changes = {"_class_name": "UNet2DConditionModel", "in_channels": 4, "projection_class_embeddings_input_dim": None}
    old = shrink(pipeline / "unet", 4, **changes)
    pretrained.init_stage("sd-image-variations", pipeline, root / "out", CONFIG, 0)
    found = folder.read(root / "out", "anchor")
    return old, {name.removeprefix("unet."): tensor.read() for name, tensor in found.items()}, root / "out"


def test_the_new_input_channels_are_ignored(anchor):
    old, new, _ = anchor
    np.testing.assert_array_equal(new["conv_in.kernel"][:, :, :4], old["conv_in.weight"].transpose(2, 3, 1, 0))
    assert new["conv_in.kernel"].shape[2] == 8 and not new["conv_in.kernel"][:, :, 4:].any()


@pytest.mark.parametrize("layer", ["conv_in", "conv_out", "mid_block.attentions.0.transformer_blocks.0.ff"])
def test_layers_for_normals_are_copies(anchor, layer):
    _, new, _ = anchor
    names = [name for name in new if name.startswith(layer + ".")]
    assert len(names) >= 2
    for name in names:
        np.testing.assert_array_equal(new[name.replace(layer, layer + "_normal")], new[name])


def test_cross_domain_attention_adds_nothing_yet(anchor):
    _, new, _ = anchor
    outputs = [tensor for name, tensor in new.items() if "attn_joint_mid.to_out" in name]
    assert outputs and not any(output.any() for output in outputs)
    assert all(tensor.any() for name, tensor in new.items() if "attn_joint_mid.to_q" in name)


def test_the_label_embedding_is_new(anchor):
    assert anchor[1]["class_embedding.linear_1.kernel"].shape[0] == 12


def test_the_weights_folder_has_the_stage_and_its_autoencoder(anchor):
    out = anchor[2]
    assert folder.read(out, "autoencoder")
    assert folder.read_config(out)["anchor"].model.unet.in_channels == 8


@pytest.mark.slow
def test_the_interpolation_stage_gets_only_new_labels(tmp_path):
    pipeline = released.write_pipelines(tmp_path)["interpolation"]
    old = shrink(pipeline / "unet", 8, projection_class_embeddings_input_dim_=None)
    pretrained.init_stage("svd", pipeline, tmp_path / "out", CONFIG, 0)
    new = folder.read(tmp_path / "out", "interpolation")
    added = {name for name in new if name.startswith("unet.class_embedding.")}
    assert len(added) == 4 and len([name for name in new if name.startswith("unet.")]) == len(old) + 4


@pytest.mark.slow
def test_other_missing_tensors_are_named(tmp_path):
    pipeline = released.write_pipelines(tmp_path)["interpolation"]
    (file,) = variants.find_files(pipeline / "unet")
    kept = {name: tensor.read() for name, tensor in tensors.read_files([file]).items() if name != "conv_out.bias"}
    safetensors_numpy.save_file(kept, file)
    with pytest.raises(ValueError, match=r"missing conv_out\.bias"):
        pretrained.init_stage("svd", pipeline, tmp_path / "out", CONFIG, 0)
    assert not (tmp_path / "out").exists()


def test_another_pipeline_is_refused(tmp_path):
    pipeline = released.write_pipelines(tmp_path)["interpolation"]
    with pytest.raises(ValueError, match="has a UNet2DConditionModel; give that pipeline"):
        pretrained.init_stage("sd-image-variations", pipeline, tmp_path / "out", CONFIG, 0)
