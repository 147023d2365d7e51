"""Omnidata's checkpoint becomes the normal estimator of a weights folder; every tensor maps once."""

import json
import lzma
import pathlib
import re

import checkpoint_files as files
import numpy as np
import pytest
from flax import nnx

from e3d_jax import stages
from e3d_jax.models import dpt, layers
from e3d_jax.presets import envision3d, mini
from e3d_jax.weights import convert, diffusers, folder, omnidata, tensors

MANIFEST = pathlib.Path(__file__).parent / "fixtures" / "omnidata_manifest.json.xz"
CONFIG = stages.parse_config(envision3d.get_config("smoke").to_dict())
MODEL = CONFIG["normals"].model
FULL = stages.parse_config(envision3d.get_config().to_dict())["normals"].model


def module_of(model):
    return nnx.eval_shape(lambda: dpt.DPTNormalEstimator(model.network, layers.Types(rngs=nnx.Rngs(0))))


def checkpoint(path, change=lambda arrays: None):
    """Write a toy checkpoint with the released names; returns its arrays."""
    rng, arrays = np.random.default_rng(0), {}
    for where, variable in diffusers.parameters(module_of(MODEL)).items():
        shape = diffusers.released_shape(variable.shape, where, omnidata.COMPONENT)
        name = f"model.{diffusers.tensor_name(where, omnidata.COMPONENT)}"
        arrays[name] = rng.normal(0, 0.1, shape).astype(np.float32)
    arrays["model.pretrained.model.head.bias"] = np.zeros(3, np.float32)
    change(arrays)
    files.write(path, arrays)
    return arrays


@pytest.fixture
def path(tmp_path):
    return tmp_path / "normals.ckpt"


def test_every_tensor_of_the_full_size_release_maps_once():
    shapes = json.loads(lzma.decompress(MANIFEST.read_bytes()))
    stored = {
        name.removeprefix("model."): tensors.Tensor(tuple(shape), np.dtype(np.float32), list)
        for name, shape in shapes.items()
        if not name.removeprefix("model.").startswith(omnidata.COMPONENT.ignored)
    }
    module = module_of(FULL)
    matched = diffusers.match(module, stored, omnidata.COMPONENT)
    assert len(matched) == len(stored) == len(diffusers.parameters(module))


def test_the_defaults_are_the_full_size():
    assert FULL.network == dpt.DPTSpec()


def test_import_keeps_every_bit(path, tmp_path):
    arrays = checkpoint(path)
    convert.import_pipelines({}, tmp_path / "weights", CONFIG, path)
    found = folder.read(tmp_path / "weights", "normals")
    kernel = found["vit.blocks.1.attn.qkv.kernel"].read()
    np.testing.assert_array_equal(kernel.T, arrays["model.pretrained.model.blocks.1.attn.qkv.weight"])
    assert len(found) == len(arrays) - 1
    assert folder.read_config(tmp_path / "weights")["normals"].model.architecture == "dpt_hybrid"


def test_imported_normals_load(path, tmp_path):
    arrays = checkpoint(path)
    convert.import_pipelines({}, tmp_path / "weights", CONFIG, path)
    module = module_of(MODEL)
    folder.load(tmp_path / "weights", "normals", module)
    np.testing.assert_array_equal(module.head_out.bias[...], arrays["model.scratch.output_conv.4.bias"])


def test_all_wrong_tensors_are_named(path):
    def change(arrays):
        del arrays["model.scratch.layer1_rn.weight"]
        arrays["model.extra.weight"] = np.zeros(2, np.float32)
        arrays["model.pretrained.model.cls_token"] = np.zeros((1, 1, 5), np.float32)

    checkpoint(path, change)
    with pytest.raises(ValueError, match=re.escape(f"{path}: the weights do not fit the DPTNormalEstimator")) as error:
        omnidata.read(path, MODEL)
    for part in ("missing scratch.layer1_rn.weight", "unknown extra.weight", "cls_token has shape (1, 1, 5)"):
        assert part in str(error.value)


def test_values_that_are_not_finite_are_refused_and_leave_nothing(path, tmp_path):
    checkpoint(path, lambda arrays: arrays["model.scratch.output_conv.4.bias"].fill(np.nan))
    with pytest.raises(ValueError, match=r"head_out\.bias has values that are not finite"):
        convert.import_pipelines({}, tmp_path / "weights", CONFIG, path)
    assert not (tmp_path / "weights").exists()


def test_a_config_with_another_estimator_is_refused(path):
    checkpoint(path)
    with pytest.raises(ValueError, match="estimates normals with another network"):
        omnidata.read(path, stages.parse_config(mini.get_config("smoke").to_dict())["normals"].model)
