"""Exported pipelines load in diffusers and transformers without missing or unexpected names."""

import numpy as np
import pytest
import released
from flax import nnx

from e3d_jax import stages
from e3d_jax.presets import envision3d
from e3d_jax.weights import convert, folder

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    root = tmp_path_factory.mktemp("exports")
    config = stages.parse_config(envision3d.get_config().to_dict())
    estimator = stages.parse_config({"size": 64, "normals": {}})
    folder.save(root / "normals", "normals", nnx.Linear(1, 1, rngs=nnx.Rngs(0)), estimator)
    pipelines = released.write_pipelines(root / "pipelines")
    convert.import_pipelines(pipelines, root / "weights", config, root / "normals")
    convert.export_pipelines(root / "weights", root / "out", "float32")
    return root / "out"


@pytest.mark.parametrize(
    "part, library, kind",
    [
        ("anchor/vae", "diffusers", "AutoencoderKL"),
        ("anchor/image_encoder", "transformers", "CLIPVisionModelWithProjection"),
        ("interpolation/vae", "diffusers", "AutoencoderKLTemporalDecoder"),
        ("interpolation/image_encoder", "transformers", "CLIPVisionModelWithProjection"),
        ("interpolation/unet", "diffusers", "UNetSpatioTemporalConditionModel"),
    ],
)
def test_every_name_is_known(exported, part, library, kind):
    source = {"diffusers": diffusers, "transformers": transformers}[library]
    _, found = getattr(source, kind).from_pretrained(exported / part, output_loading_info=True)
    # The released interpolation U-Net has an embedding of cameras that Stable Video Diffusion's class lacks.
    extra = {f"class_embedding.linear_{i}.{leaf}" for i in (1, 2) for leaf in ("weight", "bias")}
    assert set(found["unexpected_keys"]) == (extra if part == "interpolation/unet" else set())
    assert not found["missing_keys"] and not found["mismatched_keys"]


@pytest.mark.parametrize("stage, kind", [("anchor", "DDIMScheduler"), ("interpolation", "EulerDiscreteScheduler")])
def test_schedulers_load(exported, stage, kind):
    scheduler = getattr(diffusers, kind).from_pretrained(exported / stage / "scheduler")
    scheduler.set_timesteps(4)
    assert len(scheduler.timesteps) == 4


def test_image_processors_load(exported):
    for stage in convert.PARTS:
        processor = transformers.CLIPImageProcessor.from_pretrained(exported / stage / "feature_extractor")
        assert np.shape(processor(np.zeros((40, 30, 3), np.uint8))["pixel_values"][0]) == (3, 224, 224)
