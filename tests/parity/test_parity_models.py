"""Networks of diffusers and transformers with random toy weights compared with ours, loaded from their folders."""

import json

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from e3d_jax.weights import diffusers as ours

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4  # of the largest magnitude


@pytest.fixture
def convert(tmp_path):
    """Return a function that gives our module the weights of a PyTorch module."""

    def through_a_folder(module, change=lambda folder: None):
        torch.manual_seed(0)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, 0.02, 0.7 / max(parameter[0].numel(), 1) ** 0.5)
        module.eval().requires_grad_(False).save_pretrained(tmp_path)
        change(tmp_path)
        return ours.load(tmp_path)

    return through_a_folder


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def channels_first(array):
    return torch.tensor(np.moveaxis(array, -1, -3))


def call(module, *args, method="__call__", **kwargs):
    function = jax.jit(
        lambda module, *args: getattr(module, method)(*args, **kwargs),
        compiler_options={"xla_backend_optimization_level": 0},  # Compiling takes nearly all of the time.
    )
    return np.asarray(function(module, *args))


def assert_close(got, expected):
    expected = expected.numpy()
    expected = np.moveaxis(expected, -3, -1) if expected.ndim > 3 else expected
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() < TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize(
    "activation, layers, patch, batch", [("quick_gelu", 2, 8, 3), ("gelu", 1, 16, 1), ("gelu", 3, 4, 2)]
)
def test_image_encoder(convert, activation, layers, patch, batch):
    config = transformers.CLIPVisionConfig(
        hidden_act=activation,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=32,
        patch_size=patch,
        projection_dim=24,
    )
    theirs = transformers.CLIPVisionModelWithProjection(config)
    module, pixels = convert(theirs), draw(batch, 32, 32, 3)
    assert_close(call(module, pixels), theirs(channels_first(pixels)).image_embeds)


@pytest.mark.parametrize("widths, depth, groups, size", [((32, 64), 1, 8, (16, 24)), ((16, 16, 32), 2, 4, (8, 8))])
def test_autoencoder(convert, widths, depth, groups, size):
    theirs = diffusers.AutoencoderKL(
        block_out_channels=widths,
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        layers_per_block=depth,
        norm_num_groups=groups,
        latent_channels=4,
    )
    module, image = convert(theirs), draw(2, *size, 3)
    posterior = theirs.encode(channels_first(image)).latent_dist
    mean, logvar = jax.jit(lambda module, image: module.encode(image))(module, image)
    assert_close(np.asarray(mean), posterior.mean)
    assert_close(np.asarray(logvar), posterior.logvar)
    assert_close(call(module, mean, method="decode"), theirs.decode(posterior.mean).sample)


@pytest.mark.parametrize("widths, depth, frames, windows", [((32, 32), 1, 3, 2), ((32, 64), 2, 5, 1)])
def test_temporal_autoencoder(convert, widths, depth, frames, windows):
    theirs = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=widths, down_block_types=["DownEncoderBlock2D"] * len(widths), layers_per_block=depth
    )
    module, latents = convert(theirs), draw(windows * frames, 8, 4, 4)
    expected = theirs.decode(channels_first(latents), num_frames=frames).sample
    assert_close(call(module, latents, method="decode", num_frames=frames), expected)


def add_silent_cameras(folder):
    """Add the release's embedding of cameras, which Stable Video Diffusion lacks, with weights of zero."""
    config, path = ours.read_config(folder), folder / "diffusion_pytorch_model.safetensors"
    width = 4 * config["block_out_channels"][0]
    shapes = {"1.weight": (width, 6), "1.bias": (width,), "2.weight": (width, width), "2.bias": (width,)}
    new = {f"class_embedding.linear_{name}": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    safetensors_numpy.save_file(safetensors_numpy.load_file(path) | new, path)
    (folder / "config.json").write_text(json.dumps(config | {"projection_class_embeddings_input_dim_": 6}))


@pytest.mark.parametrize(
    "widths, heads, batch, frames, size",
    [((32, 64), (2, 4), 1, 9, (8, 8)), ((64, 64), (4, 2), 2, 3, (4, 8))],
)
def test_interpolation_unet(convert, widths, heads, batch, frames, size):
    attends = [*["CrossAttn"] * (len(widths) - 1), ""]
    theirs = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=widths,
        down_block_types=[f"{kind}DownBlockSpatioTemporal" for kind in attends],
        up_block_types=[f"{kind}UpBlockSpatioTemporal" for kind in attends[::-1]],
        layers_per_block=1,
        num_attention_heads=heads,
        cross_attention_dim=24,
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=48,
        num_frames=frames,
    )
    module, sample = convert(theirs, add_silent_cameras), draw(batch, frames, *size, 8)
    context, time = draw(batch, 1, 24, seed=1), np.float32(1.3)
    added = np.array([[7, 127, 0.02], [6, 20, 0.3]], np.float32)[:batch]
    expected = theirs(channels_first(sample), torch.tensor(time), torch.tensor(context), torch.tensor(added)).sample
    labels = draw(batch, frames, 6, seed=2)
    assert_close(call(module, sample, np.asarray(time), context, added, labels), expected)
