"""What the diffusion stages see of pictures, as the release prepares them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from configs import envision3d
from e3d_jax import cameras, images, system
from e3d_jax.models import anchor, build, image_encoder, latents, stages
from e3d_jax.sampling import anchors, interpolation

SIZE = 256


CONFIG = envision3d.get_config("smoke").to_dict()


class Recorder:
    """A stage and its autoencoder, of which only the preprocessing is left; keeps what the networks are given."""

    def __init__(self, name):
        parts = (name, build.provider(CONFIG, name, "autoencoder"))
        self.stage, self.autoencoder = (
            nnx.eval_shape(lambda part=part: build.build(part, CONFIG[part]["model"], rngs=nnx.Rngs(0)))
            for part in parts
        )

    def condition(self, make, *arguments):
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
            return make.__wrapped__(self.stage, self.autoencoder, *arguments)


def disc(size, color):
    """A disc on a transparent background of another colour."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    rgba = np.zeros((size, size, 4), np.float32)
    inside = np.hypot(x, y) < 0.3
    rgba[inside] = [*color, 1.0]
    return rgba


def clip(pictures):
    """Pillow's resizing of pictures over white, normalised; CLIP's own preprocessing."""
    resized = [
        Image.fromarray(images.to_uint8(images.composite(x))).resize((224, 224), Image.Resampling.BICUBIC)
        for x in pictures
    ]
    return (np.stack(resized) / 255 - image_encoder.CLIP_MEAN) / image_encoder.CLIP_STD


@pytest.fixture(scope="module")
def pair():
    """A picture and its normal map as the full-size system frames them."""
    cascade = system.System.__new__(system.System)
    cascade.config = {"size": SIZE}
    return np.stack(cascade.prepare(disc(100, [0.9, 0.4, 0.1]), disc(100, [1.0, 0.5, 0.5])))


@pytest.fixture(scope="module")
def anchor_condition(pair):
    recorder = Recorder("anchor")
    return recorder, recorder.condition(anchors.make_condition, jnp.asarray(pair)[None])


def test_the_object_spans_224_of_256_pixels(anchor_condition):
    recorder, _ = anchor_condition
    rows = np.flatnonzero((recorder.encoded[0, :, :, 2] < 0).any(1))
    assert recorder.encoded.shape == (2, SIZE, SIZE, 3) and rows[-1] - rows[0] + 1 == 224


def test_picture_and_normal_map_are_over_white(anchor_condition):
    recorder, _ = anchor_condition
    np.testing.assert_array_equal(recorder.encoded[:, 0, 0], np.ones((2, 3)))
    np.testing.assert_allclose(recorder.encoded[1, SIZE // 2, SIZE // 2], [1, 0, 0], atol=1e-5)


def test_the_anchor_stage_gets_scaled_latents(anchor_condition):
    recorder, condition = anchor_condition
    np.testing.assert_allclose(condition.latents[:, 0], recorder.encoded[:, ::32, ::32] * 0.18215, rtol=1e-6)


def test_the_anchor_stages_encoder_sees_clips_plain_resize(anchor_condition, pair):
    recorder, _ = anchor_condition
    difference = np.abs(recorder.pixels - clip(pair)) * image_encoder.CLIP_STD * 255
    # Pillow's weights are rounded too: a level, where that falls on the other side of a half.
    assert difference.max() < 1.01 and difference.mean() < 0.01


@pytest.fixture(scope="module")
def window_condition():
    """Eight anchors, each of one grey."""
    recorder = Recorder("interpolation")
    grey = np.linspace(0, 1, cameras.NUM_ANCHORS, dtype=np.float32)
    ring = np.ones((1, cameras.NUM_ANCHORS, SIZE, SIZE, 4), np.float32)
    ring[..., :3] = grey[:, None, None, None]
    condition = recorder.condition(interpolation.make_condition, jnp.asarray(ring), jax.random.key(0), 0.0, 0.02)
    return recorder, condition, 2 * grey - 1


def test_windows_get_the_unscaled_latents_of_their_anchors(window_condition):
    _, condition, values = window_condition
    expected = values[[[7, 0, 1], [1, 2, 3], [3, 4, 5], [5, 6, 7]]]
    np.testing.assert_allclose(condition.latents[:, :, 0, 0, 0], expected, atol=1e-6)


def test_the_image_token_of_a_window_is_of_its_first_anchor(window_condition):
    recorder, _, values = window_condition
    seen = 2 * (recorder.pixels * image_encoder.CLIP_STD + image_encoder.CLIP_MEAN) - 1
    assert seen.shape == (4, 224, 224, 3)
    np.testing.assert_allclose(seen[:, 112, 112, 0], values[[7, 1, 3, 5]], atol=1e-5)


def seen_by_the_network(injection):
    """Shapes of what an anchor stage gives its U-Net, and the stage's output for two normal maps."""
    calls = []

    def network(_, sample, time, tokens, labels):
        calls.append((sample.shape, tokens.shape, labels.shape))
        return sample[..., :4] + sample[..., 4:] + tokens.mean()

    model = {**CONFIG["anchor"]["model"], "injection": injection}
    stage = nnx.eval_shape(lambda: build.build("anchor", model, rngs=nnx.Rngs(0)))
    condition = jax.random.normal(jax.random.key(0), (2, 1, 4, 4, 4))
    conditions = [
        stages.AnchorCondition(condition.at[1].mul(factor), jnp.ones((2, 1, 1, 3)).at[1].mul(factor))
        for factor in (1.0, 2.0)
    ]
    noisy = jnp.zeros((2, 1, cameras.NUM_ANCHORS, 4, 4, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anchor.AnchorUNet, "__call__", network)
        return calls, [stage(noisy, jnp.zeros(1), condition) for condition in conditions]


def test_the_reference_view_is_the_ninth():
    calls, outputs = seen_by_the_network(injection=True)
    assert calls[0] == ((2, 1, 9, 4, 4, 8), (2, 1, 9, 1, 3), (2, 1, 9, 12)) and outputs[0].shape[2] == 8
    assert not np.array_equal(outputs[0], outputs[1])


def test_without_injection_there_are_eight_views_and_the_normal_map_is_not_known():
    calls, outputs = seen_by_the_network(injection=False)
    assert calls[0] == ((2, 1, 8, 4, 4, 8), (2, 1, 8, 1, 3), (2, 1, 8, 12))
    np.testing.assert_array_equal(outputs[0], outputs[1])
