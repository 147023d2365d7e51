"""What the denoising networks are given of the condition, and the image tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e3d_jax.models import denoisers, image_encoder, layers

VIEWS = 8


class Network(nnx.Module):
    """Keeps what it is called with, and returns the mean of the halves of its channels, plus that of its tokens."""

    def __init__(self):
        self.calls = nnx.static([])

    def __call__(self, sample, time, tokens, *rest, **more):
        self.calls.append((sample, tokens, *rest, *more.values()))
        half = sample.shape[-1] // 2
        return sample[..., :half] + sample[..., half:] + tokens.mean()


@pytest.fixture(scope="module")
def encoder():
    spec = image_encoder.ImageEncoderSpec(
        image_size=32, patch_size=16, hidden_size=8, intermediate_size=8, num_layers=1, heads=1, projection_dim=4
    )
    return image_encoder.ImageEncoder(spec, layers.Types(rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def anchor(encoder):
    return {injection: denoisers.AnchorDenoiser("unet", Network(), encoder, injection) for injection in (True, False)}


def condition(normal=1.0):
    """Return the condition of one object, the latents and the token of its normal map scaled."""
    latents = jax.random.normal(jax.random.key(0), (1, 2, 1, 4, 4, 4))
    labels = jnp.arange(2 * (VIEWS + 1) * 12, dtype=jnp.float32).reshape(1, 2, VIEWS + 1, 12)
    tokens = jnp.ones((1, 2, 1, 1, 3)).at[:, 1].mul(normal)
    return denoisers.AnchorCondition(latents.at[:, 1].mul(normal), tokens, labels)


NOISY = jnp.zeros((1, 2, VIEWS, 4, 4, 4))


def test_the_reference_view_is_the_last(anchor):
    output = anchor[True](NOISY, jnp.zeros(1), condition())
    sample, _, _ = anchor[True].network.calls[-1]
    assert sample.shape == (1, 2, VIEWS + 1, 4, 4, 8) and output.shape == NOISY.shape
    np.testing.assert_array_equal(sample[:, :, -1, ..., :4], condition().latents[:, :, 0])
    np.testing.assert_array_equal(sample[:, :, :-1, ..., :4], 0)


def test_every_view_has_the_condition_on_its_channels(anchor):
    anchor[True](NOISY, jnp.zeros(1), condition())
    sample, _, _ = anchor[True].network.calls[-1]
    expected = np.broadcast_to(condition().latents, (1, 2, VIEWS + 1, 4, 4, 4))
    np.testing.assert_array_equal(sample[..., 4:], expected)


def test_every_view_has_the_token_of_its_domain(anchor):
    anchor[True](NOISY, jnp.zeros(1), condition(normal=2.0))
    _, tokens, _ = anchor[True].network.calls[-1]
    assert tokens.shape == (1, 2, VIEWS + 1, 1, 3)
    np.testing.assert_array_equal(tokens[0, :, :, 0, 0], [[1] * (VIEWS + 1), [2] * (VIEWS + 1)])


def test_the_network_is_given_the_labels_of_the_condition(anchor):
    anchor[True](NOISY, jnp.zeros(1), condition())
    np.testing.assert_array_equal(anchor[True].network.calls[-1][2], condition().labels)


def test_the_normal_map_is_known_with_injection(anchor):
    outputs = [anchor[True](NOISY, jnp.zeros(1), condition(normal)) for normal in (1.0, 2.0)]
    assert not np.array_equal(*outputs)


def test_the_normal_map_is_not_known_without_injection(anchor):
    outputs = [anchor[False](NOISY, jnp.zeros(1), condition(normal)) for normal in (1.0, 2.0)]
    np.testing.assert_array_equal(*outputs)


def test_there_is_no_reference_view_without_injection(anchor):
    anchor[False](NOISY, jnp.zeros(1), condition())
    sample, tokens, labels = anchor[False].network.calls[-1]
    assert (sample.shape[2], tokens.shape[2], labels.shape[2]) == (VIEWS, VIEWS, VIEWS)
    np.testing.assert_array_equal(labels, condition().labels[:, :, :VIEWS])


def test_the_number_of_views_is_that_of_the_noisy_views(anchor):
    labels = condition().labels[:, :, :4]
    small = denoisers.AnchorCondition(condition().latents, condition().tokens, labels)
    assert anchor[True](NOISY[:, :, :3], jnp.zeros(1), small).shape == (1, 2, 3, 4, 4, 4)


def test_frames_have_the_condition_on_their_channels_and_the_micro_conditioning_of_the_release(encoder):
    model = denoisers.InterpolationDenoiser("unet", Network(), encoder)
    latents = jax.random.normal(jax.random.key(0), (2, 9, 4, 4, 4))
    known = denoisers.WindowCondition(latents, jnp.ones((2, 1, 3)), jnp.array([0.02, 0.5]), jnp.ones((2, 9, 6)))
    model(jnp.zeros_like(latents), jnp.zeros(2), known)
    sample, _, ids, labels = model.network.calls[-1]
    np.testing.assert_array_equal(sample[..., 4:], latents)
    np.testing.assert_allclose(ids, [[7, 127, 0.02], [7, 127, 0.5]])
    np.testing.assert_array_equal(labels, known.labels)


def test_parameters_are_stored_under_the_name_of_the_architecture(encoder):
    model = denoisers.InterpolationDenoiser("transformer", nnx.Linear(1, 1, rngs=nnx.Rngs(0)), encoder)
    names = {path[0] for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    assert names == {"transformer", "image_encoder"} and model.network is model.transformer


def test_image_tokens_keep_their_domain(anchor):
    images = jax.random.uniform(jax.random.key(0), (2, 2, 32, 32, 3), minval=-1)
    tokens = anchor[True].tokens(images)
    assert tokens.shape == (2, 2, 1, 4)
    alone = anchor[True].image_encoder(image_encoder.clip_pixels(images[1], 32))
    np.testing.assert_allclose(tokens[1, :, 0], alone, atol=1e-5)


def several(count=None):
    """Return the condition of one object with three inputs."""
    latents = jax.random.normal(jax.random.key(1), (1, 2, 3, 4, 4, 4))
    tokens = jnp.broadcast_to(jnp.arange(3.0)[:, None, None], (1, 2, 3, 1, 3))
    labels = jnp.arange(2 * (VIEWS + 3) * 12, dtype=jnp.float32).reshape(1, 2, VIEWS + 3, 12)
    return denoisers.AnchorCondition(latents, tokens, labels, count)


def test_every_input_is_a_reference_view_with_its_own_latents_and_token(anchor):
    assert anchor[True](NOISY, jnp.zeros(1), several()).shape == NOISY.shape
    sample, tokens, labels = anchor[True].network.calls[-1]
    for half in (slice(4), slice(4, None)):
        np.testing.assert_array_equal(sample[:, :, VIEWS:, ..., half], several().latents)
    np.testing.assert_array_equal(tokens[0, 0, VIEWS:, 0, 0], [0, 1, 2])
    np.testing.assert_array_equal(labels, several().labels)


def test_noisy_views_have_latents_and_token_of_the_first_input(anchor):
    anchor[True](NOISY, jnp.zeros(1), several())
    sample, tokens, _ = anchor[True].network.calls[-1]
    first = np.broadcast_to(several().latents[:, :, :1], (1, 2, VIEWS, 4, 4, 4))
    np.testing.assert_array_equal(sample[:, :, :VIEWS, ..., 4:], first)
    assert not tokens[:, :, :VIEWS].any()


def test_the_network_is_given_how_many_views_exist(anchor):
    anchor[True](NOISY, jnp.zeros(1), several(jnp.array([2])))
    *_, num_views = anchor[True].network.calls[-1]
    np.testing.assert_array_equal(num_views, [VIEWS + 2])
