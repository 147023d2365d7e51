"""What the diffusion stages give their networks, compared with how the release prepares it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from e3d_jax import cameras, images, stages, system
from e3d_jax.models import autoencoder, denoisers, image_encoder, latents, layers
from e3d_jax.stages import anchor, interpolation

SIZE, LAYOUT = 256, cameras.RELEASED


def types():
    return layers.Types(rngs=nnx.Rngs(0))


@functools.cache
def encoder():
    """An image encoder that takes the released size and computes little."""
    narrow = {"hidden_size": 4, "intermediate_size": 4, "num_layers": 1, "heads": 1, "projection_dim": 4}
    spec = image_encoder.ImageEncoderSpec(patch_size=112, **narrow)
    return image_encoder.ImageEncoder(spec, types())


class Network(nnx.Module):
    """A denoising network that keeps the shapes of its inputs."""

    def __init__(self):
        self.calls = nnx.data([])

    def __call__(self, sample, time, tokens, labels):
        self.calls.append((sample.shape, tokens.shape, labels.shape))
        return sample[..., :4] + sample[..., 4:] + tokens.mean()


class Recorder:
    """A denoiser and its autoencoder, reduced to their preprocessing; keeps the inputs of the networks."""

    def __init__(self, denoiser):
        self.model = denoiser("unet", Network(), encoder())
        spec = autoencoder.AutoencoderSpec(block_out_channels=(4,), layers_per_block=1, norm_groups=2)
        self.autoencoder = nnx.eval_shape(lambda: autoencoder.Autoencoder(spec, types()))

    def condition(self, make, *arguments, **options):
        """Return the result of ``make`` for the denoiser, its autoencoder and the arguments."""

        def encode(_, images):
            self.encoded = np.asarray(images).reshape(-1, *images.shape[-3:])
            return images[..., ::32, ::32, :]

        def embed(_, pixels):
            self.pixels = np.asarray(pixels)
            return pixels.mean((1, 2))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(latents, "encode_in_turns", encode)
            patch.setattr(image_encoder.ImageEncoder, "__call__", embed)
            return make.__wrapped__(self.model, self.autoencoder, *arguments, **options)


def disc(size, color):
    """Draw a disc on a transparent background of another color."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    rgba = np.zeros((size, size, 4), np.float32)
    inside = np.hypot(x, y) < 0.3
    rgba[inside] = [*color, 1.0]
    return rgba


def clip(rgba):
    """Resize images over white with Pillow and normalize them: CLIP's own preprocessing."""
    resized = [
        Image.fromarray(images.to_uint8(images.composite(x))).resize((224, 224), Image.Resampling.BICUBIC) for x in rgba
    ]
    return (np.stack(resized) / 255 - image_encoder.CLIP_MEAN) / image_encoder.CLIP_STD


@pytest.fixture(scope="module")
def pair():
    """An image and its normal map as the full-size system frames them."""
    cascade = system.System.__new__(system.System)
    cascade.config = stages.parse_config({"size": SIZE})
    found = cascade.prepare(disc(100, [0.9, 0.4, 0.1]), disc(100, [1.0, 0.5, 0.5]))
    return np.stack([found.image, found.normal])


@pytest.fixture(scope="module")
def anchor_condition(pair):
    recorder = Recorder(denoisers.AnchorDenoiser)
    return recorder, recorder.condition(anchor.start, jnp.asarray(pair)[None, :, None], jnp.zeros((1, 2, 9, 12)))


def test_the_object_spans_224_of_256_pixels(anchor_condition):
    recorder, _ = anchor_condition
    rows = np.flatnonzero((recorder.encoded[0, :, :, 2] < 0).any(1))
    assert recorder.encoded.shape == (2, SIZE, SIZE, 3) and rows[-1] - rows[0] + 1 == 224


def test_image_and_normal_map_are_over_white(anchor_condition):
    recorder, _ = anchor_condition
    np.testing.assert_array_equal(recorder.encoded[:, 0, 0], np.ones((2, 3)))
    np.testing.assert_allclose(recorder.encoded[1, SIZE // 2, SIZE // 2], [1, 0, 0], atol=1e-5)


def test_the_anchor_stage_gets_scaled_latents(anchor_condition):
    recorder, condition = anchor_condition
    np.testing.assert_allclose(condition.latents[0, :, 0], recorder.encoded[:, ::32, ::32] * 0.18215, rtol=1e-6)


def test_the_encoder_of_the_anchor_stage_gets_images_resized_as_by_clip(anchor_condition, pair):
    recorder, _ = anchor_condition
    difference = np.abs(recorder.pixels - clip(pair)) * image_encoder.CLIP_STD * 255
    # Pillow's weights are rounded, too: one level of difference, where that crosses a half.
    assert difference.max() < 1.01 and difference.mean() < 0.01


@pytest.fixture(scope="module")
def window_condition():
    """Eight anchors, each of one gray level."""
    recorder = Recorder(denoisers.InterpolationDenoiser)
    gray = np.linspace(0, 1, LAYOUT.num_anchors, dtype=np.float32)
    ring = np.ones((1, LAYOUT.num_anchors, SIZE, SIZE, 4), np.float32)
    ring[..., :3] = gray[:, None, None, None]
    noise = (jax.random.key(0), 0.0, 0.02)
    condition = recorder.condition(interpolation.start, jnp.asarray(ring), *noise, layout=LAYOUT)
    return recorder, condition, 2 * gray - 1


def test_windows_get_the_unscaled_latents_of_their_anchors(window_condition):
    _, condition, values = window_condition
    expected = values[[[7, 0, 1], [1, 2, 3], [3, 4, 5], [5, 6, 7]]]
    np.testing.assert_allclose(condition.latents[:, LAYOUT.window_anchors, 0, 0, 0], expected, atol=1e-6)


def test_the_image_token_of_a_window_is_of_its_first_anchor(window_condition):
    recorder, _, values = window_condition
    given = 2 * (recorder.pixels * image_encoder.CLIP_STD + image_encoder.CLIP_MEAN) - 1
    assert given.shape == (4, 224, 224, 3)
    np.testing.assert_allclose(given[:, 112, 112, 0], values[[7, 1, 3, 5]], atol=1e-5)


def test_frames_get_the_latents_of_the_last_anchor_up_to_them(window_condition):
    _, condition, values = window_condition
    expected = values[[1, 1, 1, 1, 2, 2, 2, 2, 3]]
    np.testing.assert_allclose(condition.latents[1, :, 0, 0, 0], expected, atol=1e-6)


def test_windows_are_given_the_noise_level_that_is_set(window_condition):
    np.testing.assert_allclose(window_condition[1].noise, [0.02] * 4)
