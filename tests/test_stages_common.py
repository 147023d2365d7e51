"""What several stages share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3d_jax import images, stages
from e3d_jax.data import latents
from e3d_jax.stages import common
from tests import tiny

SIZE_32 = tiny.config()


def check(stage, record, config=SIZE_32, kind="images"):
    stages.get(stage).sources[kind].check(record, config)


def without_normals(record):
    return dataclasses.replace(record, maps={"color": record.maps["color"]})


def test_noise_levels_spread_evenly_over_a_batch():
    drawn = common.stratified(jax.random.key(0), 10)
    np.testing.assert_array_equal(jnp.floor(drawn * 10), jnp.arange(10))


def test_images_without_alpha_are_shown_unchanged():
    opaque = jax.random.uniform(jax.random.key(0), (2, 3, 3, 3))
    np.testing.assert_array_equal(images.over_white(opaque), opaque)


def test_images_with_alpha_are_shown_over_white():
    rgba = jnp.array([[[0.0, 0.5, 1.0, 0.5], [0.0, 0.0, 0.0, 0.0]]])
    np.testing.assert_allclose(images.over_white(rgba), [[[0.5, 0.75, 1.0], [1.0, 1.0, 1.0]]])


@pytest.mark.parametrize("stage", stages.STAGES)
def test_images_that_fit_are_accepted_by(stage, ball):
    check(stage, ball)


@pytest.mark.parametrize("stage", stages.STAGES)
def test_images_of_another_size_are_refused_by(stage, ball):
    with pytest.raises(ValueError, match="holds images of 32 px, but the config wants 128 px; draw them again"):
        check(stage, ball, tiny.system())


@pytest.mark.parametrize("stage", ["autoencoder", "normals", "anchor"])
def test_images_without_normal_maps_are_refused_by(stage, ball):
    with pytest.raises(ValueError, match=f"no normal maps of the anchors and inputs, from which the {stage} learns"):
        check(stage, without_normals(ball))


def test_the_interpolation_does_without_normal_maps(ball):
    check("interpolation", without_normals(ball))


def test_another_number_of_anchors_is_refused(ball):
    with pytest.raises(ValueError, match="holds 4 anchors per object, but the config's layout has 8; draw the objects"):
        check("anchor", dataclasses.replace(ball, anchors=ball.anchors[::2]))


LATENTS = {
    "anchor": {
        "views": np.zeros((2, 8, 16, 16, 2)),
        "inputs": np.zeros((2, 1, 3, 16, 16, 2)),
        "order": np.zeros((2, 1, 8)),
    },
    "interpolation": {"views": np.zeros((8, 16, 16, 2)), "anchors": np.zeros((8, 3))},
}


@pytest.mark.parametrize("stage", ["anchor", "interpolation"])
def test_latents_of_another_size_are_refused_by(stage):
    record = latents.Latents("ball", stage, LATENTS[stage])
    check(stage, record, tiny.system(32), "latents")
    with pytest.raises(
        ValueError, match="holds latents of 16 x 16, but the config wants 32 x 32; cache images of 64 px"
    ):
        check(stage, record, tiny.system(64), "latents")


@pytest.mark.parametrize(
    ("stage", "anchors"),
    [("anchor", {"views": np.zeros((2, 4, 16, 16, 2))}), ("interpolation", {"anchors": np.zeros((4, 3))})],
)
def test_latents_of_another_number_of_anchors_are_refused_by(stage, anchors):
    record = latents.Latents("ball", stage, LATENTS[stage] | anchors)
    with pytest.raises(ValueError, match="holds 4 anchors per object, but the config's layout has 8"):
        check(stage, record, tiny.system(32), "latents")


def test_inputs_without_normal_maps_are_refused(ball):
    record = dataclasses.replace(ball, inputs=(1,))
    with pytest.raises(
        ValueError, match="holds no normal maps of the anchors and inputs, from which the anchor learns"
    ):
        check("anchor", record)
