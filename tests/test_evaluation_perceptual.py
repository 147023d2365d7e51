"""Learned distances: what they need, and the kernel distance of their features."""

import numpy as np
import pytest

from e3d_jax.evaluation import kid, metrics, missing, perceptual


@pytest.fixture
def random_network():
    """The smallest network with random weights."""
    rng = np.random.default_rng(0)
    shapes = [(11, 3, 64), (5, 64, 192), (3, 192, 384), (3, 384, 256), (3, 256, 256)]
    convs = [(rng.normal(0, 0.05, (k, k, *io)).astype(np.float32), np.zeros(io[1], np.float32)) for k, *io in shapes]
    heads = [np.ones(io[1], np.float32) for _, *io in shapes]
    return perceptual.Network("random", perceptual.ST_LPIPS["alex"], perceptual.Weights(convs, heads))


def image(seed, size=48):
    return np.random.default_rng(seed).random((size, size, 3)).astype(np.float32)


def test_an_image_is_at_distance_zero_from_itself(random_network):
    assert random_network(image(0), image(0)).distance == pytest.approx(0, abs=1e-6)


def test_other_images_are_farther_than_similar_ones(random_network):
    near, far = (random_network(other, image(0)).distance for other in (image(0) * 0.98, image(1)))
    assert 0 < near < far


def test_small_images_are_not_scored(random_network):
    with pytest.raises(missing.NotScored, match=r"16 x 16 px are too small for random"):
        random_network(image(0, 16), image(1, 16))


def test_a_pair_is_shown_to_a_network_once():
    calls = []

    class Network(perceptual.Network):
        def __init__(self):
            self.name = "counted"

        def __call__(self, pred, gt):
            calls.append(1)
            return perceptual.Comparison(0.5, np.zeros(2), np.zeros(2))

    pair = metrics.ViewPair(np.ones((32, 32, 4), np.float32), np.ones((32, 32, 4), np.float32))
    assert pair.learned(Network()).distance == pair.learned(Network()).distance == 0.5
    assert len(calls) == 1


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(missing.NotScored, match=r"pip install --no-deps stlpips-pytorch==0\.0\.2"):
        perceptual.st_lpips.__wrapped__("alex")


def test_metrics_that_cannot_be_given_are_left_out_and_explained():
    def refuse(pair):
        raise missing.NotScored("its weights are not installed")

    notes = {}
    table = {"learned": metrics.Metric(refuse), "other": metrics.Metric(lambda pair: 1.0)}
    assert metrics.scores(table, None, notes) == {"other": 1}
    assert notes == {"learned": "its weights are not installed"}


def test_the_kernel_distance_of_one_distribution_is_zero_on_average():
    rng = np.random.default_rng(0)
    values = [kid.kid(*rng.normal(size=(2, 20, 4))) for _ in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values)) and min(values) < 0


def test_the_kernel_distance_grows_with_the_difference():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 4))
    near, far = (kid.kid(features + shift, rng.normal(size=(50, 4))) for shift in (0.5, 1.0))
    assert 0 < near < far


def test_one_image_is_not_a_distribution():
    with pytest.raises(missing.NotScored, match="at least two"):
        kid.kid(np.ones((1, 4)), np.ones((5, 4)))
