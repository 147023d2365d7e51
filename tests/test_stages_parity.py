"""The diffusion stages compared with the release: what networks see of images, and four steps of sampling.

The steps and their conditions are those of ``fixtures/released_topology/samplers.npz``.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import released
from flax import nnx
from PIL import Image

from e3d_jax import cameras, images, presets, stages, system
from e3d_jax.diffusion import samplers, schedules
from e3d_jax.models import denoisers, image_encoder, latents, layers
from e3d_jax.stages import anchor, interpolation

LAYOUT = cameras.RELEASED

# -- What networks see ------------------------------------------------------------------------------------------------

CONFIG = stages.parse_config(presets.load("envision3d:smoke").to_dict() | {"size": 256})
SIZE = CONFIG.size


class Recorder:
    """A stage and its autoencoder, of which only the preprocessing is left; keeps what the networks are given."""

    def __init__(self, name):
        parts = (name, CONFIG.provider(name, "autoencoder"))
        self.stage, self.autoencoder = (
            nnx.eval_shape(lambda part=part: stages.build(CONFIG, part, layers.Types(rngs=nnx.Rngs(0))))
            for part in parts
        )

    def condition(self, make, *arguments, **options):
        """What ``make`` returns for the stage, its autoencoder and ``arguments``."""

        def encode(_, images):
            self.encoded = np.asarray(images).reshape(-1, *images.shape[-3:])
            return images[..., ::32, ::32, :]

        def embed(_, pixels):
            self.pixels = np.asarray(pixels)
            return pixels.mean((1, 2))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(latents, "encode_in_turns", encode)
            patch.setattr(image_encoder.ImageEncoder, "__call__", embed)
            return make.__wrapped__(self.stage, self.autoencoder, *arguments, **options)


def disc(size, color):
    """A disc on a transparent background of another color."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    rgba = np.zeros((size, size, 4), np.float32)
    inside = np.hypot(x, y) < 0.3
    rgba[inside] = [*color, 1.0]
    return rgba


def clip(rgba):
    """Pillow's resizing of images over white, normalized; CLIP's own preprocessing."""
    resized = [
        Image.fromarray(images.to_uint8(images.composite(x))).resize((224, 224), Image.Resampling.BICUBIC) for x in rgba
    ]
    return (np.stack(resized) / 255 - image_encoder.CLIP_MEAN) / image_encoder.CLIP_STD


@pytest.fixture(scope="module")
def pair():
    """An image and its normal map as the full-size system frames them."""
    cascade = system.System(CONFIG, {})
    return np.stack(cascade.prepare(disc(100, [0.9, 0.4, 0.1]), disc(100, [1.0, 0.5, 0.5])))


@pytest.fixture(scope="module")
def anchor_condition(pair):
    recorder = Recorder("anchor")
    return recorder, recorder.condition(anchor.start, jnp.asarray(pair)[None], jnp.zeros((1, 2, 9, 12)))


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
    np.testing.assert_allclose(condition.latents[0], recorder.encoded[:, ::32, ::32] * 0.18215, rtol=1e-6)


def test_the_anchor_stages_encoder_sees_clips_plain_resize(anchor_condition, pair):
    recorder, _ = anchor_condition
    difference = np.abs(recorder.pixels - clip(pair)) * image_encoder.CLIP_STD * 255
    # Pillow's weights are rounded too: a level, where that falls on the other side of a half.
    assert difference.max() < 1.01 and difference.mean() < 0.01


@pytest.fixture(scope="module")
def gray_windows():
    """The condition of windows between eight anchors, each of one gray."""
    recorder = Recorder("interpolation")
    gray = np.linspace(0, 1, 8, dtype=np.float32)
    ring = np.ones((1, 8, SIZE, SIZE, 4), np.float32)
    ring[..., :3] = gray[:, None, None, None]
    given = (jnp.asarray(ring), jax.random.key(0), 0.0, 0.02)
    condition = recorder.condition(interpolation.start, *given, layout=LAYOUT)
    return recorder, condition, 2 * gray - 1


def test_windows_get_the_unscaled_latents_of_their_anchors(gray_windows):
    _, condition, values = gray_windows
    expected = values[[[7, 0, 1], [1, 2, 3], [3, 4, 5], [5, 6, 7]]]
    np.testing.assert_allclose(condition.latents[:, [0, 4, 8], 0, 0, 0], expected, atol=1e-6)


def test_frames_get_the_latents_of_the_last_anchor_up_to_them(gray_windows):
    _, condition, values = gray_windows
    expected = values[[1, 1, 1, 1, 2, 2, 2, 2, 3]]
    np.testing.assert_allclose(condition.latents[1, :, 0, 0, 0], expected, atol=1e-6)


def test_the_image_token_of_a_window_is_of_its_first_anchor(gray_windows):
    recorder, _, values = gray_windows
    seen = 2 * (recorder.pixels * image_encoder.CLIP_STD + image_encoder.CLIP_MEAN) - 1
    assert seen.shape == (4, 224, 224, 3)
    np.testing.assert_allclose(seen[:, 112, 112, 0], values[[7, 1, 3, 5]], atol=1e-5)


def test_windows_are_given_the_noise_level_that_is_set(gray_windows):
    np.testing.assert_allclose(gray_windows[1].noise, [0.02] * 4)


# -- Sampling ---------------------------------------------------------------------------------------------------------

ARRAYS = np.load(released.FIXTURE / "samplers.npz")
TOLERANCE = 1e-3  # Of the largest magnitude.


def channels_last(name):
    return np.moveaxis(ARRAYS[name], -3, -1)


def opaque(rgb):
    return jnp.concatenate([jnp.asarray(rgb, jnp.float32), jnp.ones((*rgb.shape[:-1], 1))], -1)


def relative_error(got, expected):
    assert got.shape == expected.shape
    return np.abs(np.asarray(got) - expected).max() / np.abs(expected).max()


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    return lambda name: released.load(name, tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def anchor_latents(load):
    stage = denoisers.AnchorDenoiser("unet", load("anchor_unet"), load("image_encoder"))
    autoencoder = load("autoencoder")
    pair = np.stack([channels_last(name)[0] / 255 for name in ("image", "normal")])
    poses = LAYOUT.cameras(64).world_from_cam[LAYOUT.anchors][None]
    labels = jnp.asarray(anchor.view_labels(poses, poses[:, :1]))
    condition = anchor.start(stage, autoencoder, opaque(pair)[None], labels)
    noise = jnp.asarray(channels_last("anchor_init_latents").reshape(1, 2, 8, 8, 8, 4))
    plan = samplers.plan(schedules.ddim_grid(4), samplers.ORDERS["ddim"])
    state = anchor.take_steps(stage, condition, samplers.begin(noise), plan, prediction="epsilon")
    return state.sample, autoencoder


def test_anchor_latents_are_those_of_the_release(anchor_latents):
    sample, _ = anchor_latents
    assert relative_error(sample.reshape(16, 8, 8, 4), channels_last("anchor_latents_4steps")) < TOLERANCE


def test_anchor_images_are_those_of_the_release(anchor_latents):
    sample, autoencoder = anchor_latents
    decoded = jax.jit(latents.decode)(autoencoder, sample[0, 0, :3])
    assert relative_error(decoded, channels_last("anchor_images_4steps")) < TOLERANCE


@pytest.fixture(scope="module")
def ring(load):
    """The stage, its autoencoder and the anchors, of which 7, 0 and 1 are given."""
    stage = denoisers.InterpolationDenoiser("unet", load("interpolation_unet"), load("interpolation_image_encoder"))
    # The ring's first window runs from anchor 7 over 0 to 1.
    given = opaque(channels_last("anchor_images_4steps"))
    anchors = jnp.zeros((1, 8, 64, 64, 4)).at[0, jnp.array([7, 0, 1])].set(given)
    return stage, load("temporal_autoencoder"), anchors


@pytest.fixture(scope="module")
def window(ring):
    """The condition of the first window."""
    condition = interpolation.start(*ring, jax.random.key(0), 0.0, 0.02, layout=LAYOUT)
    return jax.tree.map(lambda x: x[:1], condition)


def test_the_image_token_of_a_window_is_that_of_the_release(window):
    assert relative_error(window.token, ARRAYS["interp_clip_embed"]) < 1e-4


def test_noise_is_added_to_the_latents_of_anchors_alone(ring, window):
    noisy = interpolation.start(*ring, jax.random.key(0), 0.5, 0.02, layout=LAYOUT)
    np.testing.assert_allclose(noisy.token[:1], window.token, atol=1e-5)
    assert jnp.abs(noisy.latents[:1] - window.latents).mean() > 0.01


def test_window_latents_are_those_of_the_release(ring, window):
    plan = samplers.plan(schedules.karras_grid(4, noise_max=700.0), samplers.ORDERS["euler"])
    start = samplers.begin(jnp.asarray(channels_last("interp_init_latents")))
    sample = interpolation.take_steps(ring[0], window, start, plan).sample
    assert relative_error(sample, channels_last("interp_latents_4steps")) < TOLERANCE
