"""The loss between decoded views and the true ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3d_jax.evaluation import metrics
from e3d_jax.models import latents
from e3d_jax.stages import image_loss
from tests import tiny

CHOSEN = jnp.array([3, 5])


@pytest.fixture(scope="module")
def views():
    """The true views of two objects, and the latents that paint them."""
    true = jax.random.uniform(jax.random.key(0), (2, 2, 8, 12, 12, 4))
    return true, 2 * latents.network_image(true, 4)


def test_views_that_are_decoded_to_the_true_images_have_no_loss(views):
    true, painted = views
    assert image_loss.image_loss(tiny.Painter(), painted, true, CHOSEN) < 1e-5


def test_the_loss_is_of_the_chosen_view_of_each_object(views):
    true, painted = views
    gradient = jax.grad(lambda x: image_loss.image_loss(tiny.Painter(), x, true, CHOSEN))(painted + 0.1)
    found = jnp.argwhere(jnp.abs(gradient).max((1, 3, 4, 5)) > 0)
    np.testing.assert_array_equal(found, [[0, 3], [1, 5]])


def test_structural_similarity_is_the_one_that_views_are_scored_with():
    true = np.random.default_rng(0).random((1, 24, 30, 3)).astype(np.float32)
    pred = np.clip(true + 0.3 * np.random.default_rng(1).random(true.shape), 0, 1).astype(np.float32)
    found = image_loss.structural_similarity(jnp.asarray(pred), jnp.asarray(true))
    np.testing.assert_allclose(found.mean(), metrics.ssim(pred[0], true[0]), rtol=1e-5)
