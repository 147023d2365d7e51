"""From weights to a system, and from an image to views."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import e3d_jax
from e3d_jax import cameras, events, images, presets, stages, structs, system
from e3d_jax.models import layers
from e3d_jax.reconstruction import pipeline, registration
from e3d_jax.stages import conditions
from e3d_jax.weights import folder
from tests import tiny


def values_of(size=32):
    """Return the settings of toy networks that sample in one step."""
    values = tiny.system_values() | {"size": size}
    for stage in ("anchor", "interpolation"):
        values[stage]["sampling"]["num_steps"] = 1
    return values


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of random weights of the toy system."""
    path, config = tmp_path_factory.mktemp("weights"), stages.parse_config(values_of())
    for component in config.components:
        module = nnx.eval_shape(lambda c=component: stages.build(config, c, layers.Types(rngs=nnx.Rngs(0))))
        rng = np.random.default_rng(0)
        fill = lambda x, rng=rng: jnp.asarray(rng.normal(0, 0.05, x.shape), x.dtype)  # noqa: E731
        nnx.update(module, jax.tree.map(fill, nnx.state(module, nnx.Param)))
        folder.save(path, component, module, config)
    return path


@pytest.fixture(scope="module")
def toy(weights):
    return e3d_jax.load(weights)


@pytest.fixture(scope="module")
def image():
    rgba = np.ones((40, 60, 4), np.float32)
    rgba[..., 3] = 0
    rgba[10:30, 20:50] = [0.8, 0.2, 0.1, 1]
    return rgba


def reconstruct_nothing(views, pictures, *_):
    """Return a triangle, and for each picture the angles that are given, or 12 and 34 degrees."""
    mesh = structs.Mesh(np.zeros((3, 3), np.float32), np.array([[0, 1, 2]]), np.zeros((3, 3), np.float32))
    camera = cameras.ring(32, 1)
    found = [registration.Found(camera, x.elevation or 12.0, x.fov or 34.0, 0.0, 0.9, 0.1) for x in pictures]
    return mesh, tuple(found)


# -- Loading ----------------------------------------------------------------------------------------------------------


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        system.load(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            "anchor.model.unet.norm_groups",
            1,
            r"anchor.model.unet.norm_groups is 2 there and 1",
        ),
        ("size", 256, "size is 32 there and 256"),
        ("anchor.diffusion.zero_terminal_snr", False, "anchor.diffusion.zero_terminal_snr is True there and False"),
        ("layout.elevation", 10.0, "layout.elevation is 0.0 there and 10.0"),
    ],
)
def test_weights_of_another_config_are_refused(weights, path, value, said):
    values = values_of()
    *parents, last = path.split(".")
    part = values
    for name in parents:
        part = part[name]
    part[last] = value
    with pytest.raises(ValueError, match=f"belong to another config: {said} in the given config; choose"):
        system.load(weights, values)


def test_weights_of_another_prediction_are_refused(weights):
    values = values_of()
    values["anchor"]["diffusion"] = {"prediction": "epsilon", "zero_terminal_snr": False}
    with pytest.raises(ValueError, match=r"prediction is 'v' there and 'epsilon' .* \(and 1 more settings?\)"):
        system.load(weights, values)


def test_a_config_that_is_not_one_is_refused_before_the_weights_are_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"anchor\.diffusion\.prediction is 'epsilon'; expected 'v'"):
        values = values_of()
        values["anchor"]["diffusion"]["prediction"] = "epsilon"
        system.load(tmp_path, values)


def test_a_weights_folder_without_a_component_is_refused(weights, tmp_path):
    for file in weights.iterdir():
        if not file.name.startswith("normals"):
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(FileNotFoundError, match="no weights of component normals"):
        system.load(tmp_path)


def test_sampling_may_differ_from_that_of_the_weights(weights):
    values = values_of()
    values["anchor"]["sampling"]["num_steps"] = 2
    assert system.load(weights, values).config["anchor"].sampling.num_steps == 2


def test_the_distance_of_the_cameras_may_differ_from_that_of_the_weights(weights):
    found = system.load(weights, values_of() | {"layout": {"radius": 1.3}})
    assert found.config.layout.radius == 1.3


def test_a_folder_of_some_components_is_a_system(toy, tmp_path):
    values = values_of()
    del values["interpolation"]
    config = stages.parse_config(values)
    for name in config.components:
        folder.save(tmp_path, name, toy.modules[name], config)
    assert set(system.load(tmp_path).modules) == {"autoencoder", "normals", "anchor"}


# -- Images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((32, 32, 3), np.float32), "expected .h, w, 4."),
        (np.zeros((1, 1, 4), np.float32), "at least 16 px"),
        (np.full((32, 32, 4), 255, np.uint8), "divide bytes by 255"),
        (np.full((32, 32, 4), 255.0, np.float32), r"not floats in \[0, 1\]"),
        (np.full((32, 32, 4), np.nan, np.float32), r"not floats in \[0, 1\]"),
        (np.zeros((32, 32, 4), np.float32), "shows no object"),
    ],
    ids=["three channels", "one pixel", "bytes", "255", "nan", "empty"],
)
def test_arrays_that_are_not_images_are_refused(toy, array, said):
    with pytest.raises(ValueError, match=said):
        toy.prepare(array)


@pytest.fixture(scope="module")
def prepared(toy, image):
    return toy.prepare(image)


def test_a_prepared_image_has_the_size_of_the_system(prepared):
    assert prepared.image.shape == prepared.normal.shape == (32, 32, 4)


def test_estimated_normals_have_unit_length_and_the_silhouette_of_the_image(prepared):
    framed, encoded = prepared.image, prepared.normal
    np.testing.assert_array_equal(encoded[..., 3], framed[..., 3])
    length = np.linalg.norm(2 * encoded[framed[..., 3] == 1][:, :3] - 1, axis=-1)
    np.testing.assert_allclose(length, 1, atol=1e-5)
    np.testing.assert_array_equal(encoded[0, 0], [1, 1, 1, 0])


def test_a_given_normal_map_is_framed_as_the_image(toy, image):
    normal = np.ones_like(image)
    normal[:, :35, :3] = [1.0, 0.5, 0.5]
    normal[:, 35:, :3] = [0.5, 0.5, 1.0]
    encoded = toy.prepare(image, normal).normal
    np.testing.assert_allclose(encoded[16, 14], [1.0, 0.5, 0.5, 1], atol=0.1)
    np.testing.assert_allclose(encoded[16, 17], [0.5, 0.5, 1.0, 1], atol=0.1)


def test_a_normal_map_of_another_size_is_refused(toy, image):
    with pytest.raises(ValueError, match="the normal map is 60 x 39 px, the image 60 x 40"):
        toy.prepare(image, image[:-1])


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(toy, image, seed):
    with pytest.raises(ValueError, match="out of range"):
        toy(image, seed=seed)


def test_without_a_normal_estimator_a_system_asks_for_a_normal_map(toy, image):
    partial = system.System(toy.config, {"anchor": toy.modules["anchor"]})
    with pytest.raises(ValueError, match="this system has no normal estimator; give a normal map of the image"):
        partial.prepare(image)


def test_without_a_normal_estimator_a_given_normal_map_will_do(toy, image):
    assert system.System(toy.config, {}).prepare(image, image).normal.shape == (32, 32, 4)


# -- Views ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample(toy, prepared):
    """Return the views of a seed."""
    return lambda seed, model=toy: model.generate([prepared], seed, events.Clock())


@pytest.fixture(scope="module")
def views(sample):
    return sample(0)


@pytest.mark.slow
def test_all_views_of_the_layout_are_sampled(views):
    assert views.rgba.shape == (32, 32, 32, 4) and np.isfinite(views.rgba).all()
    np.testing.assert_array_equal(views.cameras.world_from_cam, cameras.ring(32).world_from_cam)


@pytest.mark.slow
def test_the_anchors_carry_normal_maps_of_unit_length(views):
    np.testing.assert_array_equal(views.normal_views, cameras.RELEASED.anchors)
    length = np.linalg.norm(views.normals, axis=-1)
    assert (np.isclose(length, 1, atol=1e-3) | (length < 1 - 1e-3)).all()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_views(sample, views):
    np.testing.assert_array_equal(sample(0).rgba, views.rgba)


@pytest.mark.slow
def test_another_seed_gives_other_views(sample, views):
    assert np.abs(sample(1).rgba - views.rgba).max() > 1e-4


@pytest.mark.slow
def test_without_interpolation_the_anchors_are_the_only_views(toy, sample, views):
    parts = {name: module for name, module in toy.modules.items() if name != "interpolation"}
    found = sample(0, system.System(toy.config, parts))
    np.testing.assert_array_equal(found.rgba, views.rgba[views.anchors])
    np.testing.assert_array_equal(found.normals, views.normals)
    np.testing.assert_array_equal(found.cameras.world_from_cam, views.cameras.world_from_cam[views.anchors])
    np.testing.assert_array_equal(found.anchors, range(8))


@pytest.mark.slow
def test_a_call_gives_the_views_and_what_each_stage_took(toy, image, views, monkeypatch):
    monkeypatch.setattr(pipeline, "reconstruct_with", reconstruct_nothing)
    result = toy(image)
    np.testing.assert_array_equal(result.views.rgba, views.rgba)
    assert list(result.seconds) == list(result.peak_memory) == ["input", "anchors", "interpolation", "reconstruction"]


@pytest.mark.slow
def test_a_stream_has_the_views_of_each_stage_and_ends_in_the_result(toy, image, views, monkeypatch):
    monkeypatch.setattr(pipeline, "reconstruct_with", reconstruct_nothing)
    *happened, result = toy.stream(image)
    made = {event.stage: event.value for event in happened if isinstance(event, events.Done)}
    np.testing.assert_array_equal(made["anchors"].rgba, views.rgba[views.anchors])
    np.testing.assert_array_equal(made["interpolation"].rgba, views.rgba)
    assert made["reconstruction"] is result.mesh


def test_a_stream_raises_what_a_call_would(toy, image):
    with pytest.raises(ValueError, match="out of range"):
        next(toy.stream(image, seed=-1))


def test_views_over_white_are_cut_out():
    rgb = np.ones((1, 2, 32, 32, 3), np.float32)
    rgb[:, :, 8:24, 8:24] = [0.8, 0.1, 0.1]
    alpha = system._with_alpha(rgb)[..., 3]
    assert alpha.shape == rgb.shape[:-1] and (alpha[..., 12:20, 12:20] == 1).all() and (alpha[..., :6, :] == 0).all()


def test_views_without_an_object_are_not_blamed_on_the_users_image(monkeypatch):
    monkeypatch.setattr(images.importlib.util, "find_spec", lambda name: None)  # No rembg.
    noise = np.random.default_rng(0).random((1, 2, 32, 32, 3), np.float32)
    with pytest.raises(ValueError, match="the models drew a view without an object"):
        system._with_alpha(noise)


@pytest.fixture(scope="module")
def assembled(toy):
    """Views that differ in their reds, and normals along x in the lower half."""
    color = np.full((8, 32, 32, 4), 1.0, np.float32)
    normals = np.zeros_like(color)
    normals[..., :] = [1.0, 0.5, 0.5, 1]
    normals[:, :16, :, 3] = 0
    between = np.broadcast_to(np.arange(24, dtype=np.float32)[:, None, None, None] / 100, (24, 32, 32, 4))
    return toy.assemble(color, normals, between)


def test_views_between_anchors_are_in_the_order_of_the_ring(assembled):
    np.testing.assert_allclose(assembled.rgba[[1, 2, 3, 5, 31], 0, 0, 0], [0, 0.01, 0.02, 0.03, 0.23])


def test_anchors_are_every_fourth_view(assembled):
    np.testing.assert_array_equal(np.flatnonzero(assembled.rgba[:, 0, 0, 0] == 1), range(0, 32, 4))


def test_normals_are_decoded(assembled):
    np.testing.assert_allclose(assembled.normals[:, 16:], np.broadcast_to([1, 0, 0], (8, 16, 32, 3)), atol=1e-6)


def test_normals_are_unknown_where_the_map_is_transparent(assembled):
    assert not assembled.normals[:, :16].any()


@pytest.mark.parametrize(("variant", "radius"), [("envision3d", 1.5), ("envision3d:released", 1.3)])
def test_views_of_released_weights_are_of_nearer_cameras(variant, radius):
    model = system.System(stages.parse_config(presets.load(variant).to_dict()), {})
    blank = np.zeros((32, 8, 8, 4), np.float32)
    views = model.assemble(blank[:8], blank[:8], blank[8:])
    np.testing.assert_allclose(np.linalg.norm(views.cameras.world_from_cam[:, :3, 3], axis=-1), radius, rtol=1e-6)


def test_weights_serve_a_config_that_leaves_a_component_out(weights):
    values = values_of()
    del values["interpolation"]
    assert "interpolation" not in system.load(weights, values).modules


# -- Several images ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several(toy):
    """A system that takes three images and is given their cameras."""
    values = values_of()
    values["anchor"]["diffusion"] |= {"max_inputs": 3, "input_cameras": True}
    return system.System(stages.parse_config(values), toy.modules)


@pytest.fixture
def result_of(several, monkeypatch):
    monkeypatch.setattr(pipeline, "reconstruct_with", reconstruct_nothing)
    return several


@pytest.mark.slow
def test_several_images_give_the_views_of_one_object(result_of, image):
    result = result_of([image, image[:, ::-1]], azimuths=[0, "right"], elevation=[20, None], fov=30)
    assert result.views.rgba.shape == (32, 32, 32, 4) and np.isfinite(result.views.rgba).all()
    assert [each.azimuth for each in result.inputs] == [0, 90]
    assert [each.elevation for each in result.inputs] == [20, 12]
    assert [each.found for each in result.inputs] == [
        {"elevation": "given", "fov": "given"},
        {"elevation": "fitted to the mesh", "fov": "given"},
    ]


@pytest.mark.parametrize("knows", [True, False])
def test_views_of_weights_that_learned_from_any_exposure_get_that_of_the_image(knows, toy, several, image, monkeypatch):
    drawn = np.full((1, 2, 8, 32, 32, 4), 0.5, np.float32)
    monkeypatch.setattr(system.anchor, "sample", lambda *_, **__: drawn)
    model = several if knows else toy
    given = model.prepare(image)
    views = model.anchors([[given]], jax.random.key(0))
    color = (given.image[..., :3] * given.image[..., 3:]).sum((0, 1)) / given.image[..., 3].sum()
    expected = 0.5 * ((color + 0.05) / 0.55).clip(0.6, 1.7) if knows else 0.5
    np.testing.assert_allclose(views[0, 0, ..., :3], np.broadcast_to(expected, (8, 32, 32, 3)), rtol=1e-4)
    np.testing.assert_array_equal(views[0, 1], drawn[0, 1])


def test_labels_of_images_are_those_of_training(several):
    images = [system.Input(*[np.ones((32, 32, 4), np.float32)] * 2, azimuth=a, elevation=30.0) for a in (0.0, 90.0)]
    labels = several._labels(images)[0, 0, 8:]
    # Sines, then cosines, of the unknown field of view, elevation and azimuth.
    np.testing.assert_allclose(labels[:, :3], [[0, 0.5, 0], [0, 0.5, 1]], atol=1e-6)
    np.testing.assert_allclose(labels[:, 6:9], [[0, np.sqrt(0.75), 1], [0, np.sqrt(0.75), 0]], atol=1e-6)


def test_labels_of_a_level_image_are_those_of_the_release(toy, prepared):
    views = cameras.ring(32).world_from_cam[cameras.RELEASED.anchors][None]
    np.testing.assert_array_equal(toy._labels([prepared]), conditions.view_labels(views, views[:, :1]))


def test_the_field_of_view_of_a_crop_is_that_of_its_part_of_the_image(several, image):
    found = several.prepare(image, fov=60)
    part = 30 / images.FILL / 60  # of the image's width
    assert np.tan(np.radians(found.crop_fov / 2)) == pytest.approx(part * np.tan(np.radians(30)), rel=1e-6)


def test_the_normals_of_a_side_are_in_the_frame_of_the_front(several, image):
    facing = np.ones_like(image)
    facing[..., :3] = [1.0, 0.5, 0.5]  # +x, toward the camera
    turned = several.prepare(image, facing, azimuth=90.0).normal
    np.testing.assert_allclose(turned[16, 16], [0.5, 1.0, 0.5, 1], atol=0.01)


@pytest.mark.parametrize(
    ("count", "options", "said"),
    [
        (2, {}, "azimuths is None for 2 images; expected one for each, 0 for the first"),
        (2, {"azimuths": [90, 0]}, "expected one for each, 0 for the first"),
        (2, {"azimuths": [0, "above"]}, "'above' is an unknown direction; expected front, right, back, left"),
        (3, {"azimuths": [0, 90, "right"]}, "images 2 and 3 are both from azimuth 90; give images from different"),
        (2, {"azimuths": [0, 359.5]}, "images 1 and 2 are both from azimuth 359.5"),
        (4, {"azimuths": [0, 90, 180, 270]}, r"4 images are given, but these weights take 3 \(anchor.diffusion.max_i"),
        (1, {"elevation": 85}, "elevation is 85; expected degrees from -30 to 80"),
        (1, {"fov": 3}, "fov is 3; expected degrees from 5 to 100"),
        (2, {"azimuths": [0, 90], "elevation": [1, 2, 3]}, "elevation has 3 values for 2 images; give one for all, or"),
        (2, {"azimuths": [0, 90], "normal": np.ones((40, 60, 4))}, "a normal map goes with one image, 2 are given"),
    ],
)
def test_images_that_do_not_go_together_are_refused(several, image, count, options, said):
    with pytest.raises(ValueError, match=said):
        several([image] * count, **options)


def test_weights_that_take_level_images_refuse_another_elevation(toy, image):
    with pytest.raises(
        ValueError, match=r"elevation is 25, but these weights take it to be 0\.0; leave it out, or use"
    ):
        toy(image, elevation=25)


def test_weights_that_take_level_images_say_so(toy, image):
    found = toy.prepare(image)
    assert (found.elevation, found.fov, found.found["elevation"]) == (0.0, 39.59, "assumed")


def test_an_object_that_is_cut_off_is_warned_of(toy, image):
    with pytest.warns(UserWarning, match=r"from azimuth 0 seems to be cut off at the border, .*; give an image that"):
        toy.prepare(image[:25])


def test_the_reconstruction_gets_only_the_angles_that_are_given(several, image):
    picture = several.prepare(image, azimuth=90.0, fov=60).picture
    assert (picture.azimuth, picture.elevation, picture.fov) == (90, None, 60)
    assert len(picture.rgba) == 35, "not resampled to the size of the views"
