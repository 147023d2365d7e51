"""Examples and loss of the normal estimator."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3d_jax import cameras, config, images, stages
from e3d_jax.stages import normals

STAGE = stages.get("normals")


def test_inputs_are_framed_as_a_users_image(ball):
    image, _, _ = normals.input_pair(ball, 8)
    np.testing.assert_allclose(images.object_box(image[..., 3] / np.float32(255)), (0, 0, 32), atol=1.5)


def test_the_normal_map_is_framed_as_the_image(ball):
    image, normal, _ = normals.input_pair(ball, 8)
    np.testing.assert_array_equal(normal[..., 3], image[..., 3])


def test_the_camera_of_an_input_is_that_of_the_crop(ball):
    image, _, camera = normals.input_pair(ball, 8)
    assert (camera.width, len(camera)) == (32, 1) and camera.focal[0, 0] > ball.cameras.focal[8, 0]
    # The outermost rays of the crop still meet the ball: the silhouette is where they do.
    rays = cameras.image_rays(camera)
    origin, direction = np.asarray(rays.origins[0], np.float64), np.asarray(rays.directions[0], np.float64)
    distance = np.linalg.norm(np.cross(origin, direction), axis=-1)
    assert ((distance < 0.4) == (image[..., 3] > 127)).mean() > 0.98


def test_any_input_of_a_record_is_chosen(ball):
    rng = np.random.default_rng(0)
    chosen = [STAGE.sources["images"].example(ball, rng, None).cameras.world_from_cam for _ in range(100)]
    assert len(np.unique(np.round(cameras.azimuth_of(np.concatenate(chosen)), 3))) == 8


def test_jitter_changes_colors_and_keeps_the_silhouette():
    rgba = jax.random.uniform(jax.random.key(0), (2, 4, 4, 4))
    jittered = normals.jitter_colors(rgba, jax.random.key(1), 0.3)
    np.testing.assert_array_equal(jittered[..., 3], rgba[..., 3])
    assert jnp.abs(jittered - rgba).max() > 0.05


def batch(azimuth):
    """Return two images that are their own normal maps, of cameras at an azimuth, and the normals that they encode."""
    image = jax.random.randint(jax.random.key(0), (2, 8, 8, 4), 0, 256).astype(jnp.uint8)
    image = image.at[..., 3].set(255 * (image[..., 3] > 127))
    normal = image[..., :3] / 127.5 - 1
    camera = jax.tree.map(lambda x: jnp.stack([x, x]), cameras.ring(8, 1, offset=azimuth))
    return normals.Batch(image, image, camera), normal / jnp.linalg.norm(normal, axis=-1, keepdims=True)


@pytest.mark.parametrize(("sign", "expected"), [(1.0, 0.0), (-1.0, 2.0)])
def test_the_loss_is_one_minus_the_cosine_inside_the_silhouette(sign, expected):
    examples, target = batch(0.0)
    inside = examples.image[..., 3:] > 127
    chosen = config.ComponentConfig(model=None, loss=normals.Loss(color_jitter=0.1))
    model = lambda _: jnp.where(inside, sign, -sign) * target  # noqa: E731
    loss, _ = STAGE.loss(model, {}, examples, jax.random.key(1), chosen, cameras.RELEASED)
    np.testing.assert_allclose(loss, expected, atol=1e-5)


def test_normals_are_learned_in_the_frame_of_the_input():
    examples, target = batch(np.pi / 2)
    # The camera at +y comes to +x: x becomes y, and y becomes -x.
    turned = jnp.stack([target[..., 1], -target[..., 0], target[..., 2]], -1)
    chosen = config.ComponentConfig(model=None, loss=normals.Loss())
    loss, _ = STAGE.loss(lambda _: turned, {}, examples, jax.random.key(1), chosen, cameras.RELEASED)
    np.testing.assert_allclose(loss, 0.0, atol=1e-5)


def test_an_estimate_has_the_silhouette_and_is_white_outside():
    alpha = jnp.array([0.0, 1.0])[None, None, :, None]
    found = normals.estimate(lambda x: jnp.zeros((1, 1, 2, 3)), jnp.ones((1, 1, 2, 4)), alpha)
    np.testing.assert_array_equal(found[0, 0], [[1, 1, 1, 0], [0.5, 0.5, 0.5, 1]])


def test_inputs_with_cameras_of_their_own_are_framed_already(ball):
    extra = cameras.ring(32, 1, offset=1.0)
    record = dataclasses.replace(
        ball,
        cameras=jax.tree.map(lambda *parts: np.concatenate(parts), ball.cameras, extra),
        maps={name: {**views, 32: views[4]} for name, views in ball.maps.items()},
        inputs=[32],
    )
    image, normal, camera = normals.input_pair(record, 32)
    np.testing.assert_array_equal(image, ball.image(4))
    np.testing.assert_array_equal(normal, ball.image(4, "normal"))
    np.testing.assert_array_equal(camera.world_from_cam, extra.world_from_cam)
