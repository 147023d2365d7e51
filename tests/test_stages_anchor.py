"""Labels, examples and loss of the anchor stage."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3d_jax import cameras, config, stages
from e3d_jax.diffusion import samplers, schedules
from e3d_jax.models import denoisers, latents
from e3d_jax.stages import anchor, anchor_data, common, conditions
from tests import tiny

STAGE = stages.get("anchor")
IMAGES = STAGE.sources["images"]
SIZE_32 = tiny.config()


def poses(layout):
    return layout.cameras(32).world_from_cam[layout.anchors][None]


# -- Labels -----------------------------------------------------------------------------------------------------------


def test_labels_of_the_released_cameras_are_those_of_the_release():
    azimuth = np.append(cameras.azimuths(8), 0.0)
    label = np.zeros((2, 9, 6), np.float32)
    label[..., 2] = azimuth
    label[0, :, 3] = label[1, :, 4] = 1.0
    views = poses(cameras.RELEASED)
    expected = np.concatenate([np.sin(label), np.cos(label)], -1)[None]
    np.testing.assert_array_equal(conditions.view_labels(views, views[:, :1]), expected, strict=True)


def test_labels_depend_on_the_azimuth_from_the_input_alone():
    views = poses(cameras.RELEASED)
    found = conditions.view_labels(np.roll(views, -3, axis=1), views[:, 3:4])
    np.testing.assert_array_equal(found, conditions.view_labels(views, views[:, :1]))


def test_elevations_enter_the_labels():
    views = poses(cameras.ViewLayout(elevation=30.0))
    found = conditions.view_labels(views, views[:, :1])
    np.testing.assert_allclose(found[..., 1], 0.5, atol=1e-6)
    np.testing.assert_allclose(found[..., 7], np.sqrt(0.75), atol=1e-6)


def test_labels_are_the_same_on_the_device():
    views = poses(cameras.ViewLayout(elevation=10.0, elevation_swing=5.0))
    found = jax.jit(conditions.view_labels)(jnp.asarray(views), jnp.asarray(views[:, :1]))
    np.testing.assert_allclose(found, conditions.view_labels(views, views[:, :1]), atol=1e-5)


# -- Examples ---------------------------------------------------------------------------------------------------------


def azimuth(example):
    return cameras.azimuth_of(np.asarray(example.input_cameras.world_from_cam))[0]


def batch_of_one(example):
    return jax.tree.map(lambda x: jnp.asarray(x)[None], example)


@pytest.mark.parametrize("first", range(0, 8, 3))
def test_anchors_start_at_the_input(ball, first):
    example = anchor_data.example_from(ball, [first])
    assert azimuth(example) == pytest.approx(first * np.pi / 4, abs=1e-5)
    np.testing.assert_array_equal(example.targets[0, 0], ball.image(4 * first))
    np.testing.assert_array_equal(example.targets[1, 1], ball.image(4 * ((first + 1) % 8), "normal"))


def with_input_at(ball, degrees, view=0):
    """Return a record with one input, a copy of a view at another azimuth."""
    extra = cameras.ring(32, 1, offset=np.radians(degrees))
    count = len(ball.cameras)
    return dataclasses.replace(
        ball,
        cameras=jax.tree.map(lambda *parts: np.concatenate(parts), ball.cameras, extra),
        maps={name: {**views, count: views[view]} for name, views in ball.maps.items()},
        inputs=[count],
    )


@pytest.mark.parametrize(("degrees", "nearest"), [(100, 2), (130, 3), (350, 0), (-30, 7)])
def test_anchors_start_with_the_one_nearest_to_an_input_at_any_azimuth(ball, degrees, nearest):
    order = common.anchors_from(with_input_at(ball, degrees), 0)
    np.testing.assert_array_equal(order, np.roll(ball.anchors, -nearest))


def test_labels_of_an_input_at_any_azimuth_are_relative_to_it(ball):
    example = anchor_data.example_from(with_input_at(ball, 100), [0])
    batch = batch_of_one(example)
    expected = np.sin(np.radians([-10, 35, 80, 125, 170, 215, 260, 305, 0]))
    np.testing.assert_allclose(batch.labels(None)[0, 0, :, 2], expected, atol=1e-5)


def test_normals_of_an_input_at_any_azimuth_are_in_its_frame(ball):
    example = anchor_data.example_from(with_input_at(ball, 100, view=8), [0])
    batch = batch_of_one(example)
    pair = batch.true_inputs()[0, 1, 0]
    # The copied view faces +y, which is 10 degrees before the azimuth of the input.
    np.testing.assert_allclose(2 * pair[16, 16, :3] - 1, [np.cos(0.1745), -np.sin(0.1745), 0], atol=0.1)


def test_half_of_the_examples_are_mirrored(ball):
    examples = [IMAGES.example(ball, np.random.default_rng(seed), SIZE_32) for seed in range(60)]
    assert 0.3 < np.mean([red_is_at(example) < 0 for example in examples]) < 0.7


def red_is_at(example):
    """Return where the ball is red: positive for +y, as the ball is made, and negative for -y."""
    y = np.asarray(example.cameras.world_from_cam)[:, 1, 3]
    red = [(view[view[..., 3] == 255][:, 0] > 128).mean() - 0.5 for view in example.targets[0]]
    return float(np.dot(y, red))


def test_a_mirror_swaps_left_and_right_views(ball):
    example = anchor_data.example_from(ball, [2])
    color, mirror = example.targets[0], anchor_data.mirrored(example).targets[0]
    for view in range(8):
        np.testing.assert_array_equal(mirror[view], color[-view % 8][:, ::-1])


def test_a_mirrored_example_still_starts_at_its_input(ball):
    example = anchor_data.mirrored(anchor_data.example_from(ball, [3]))
    views = cameras.azimuth_of(np.asarray(example.cameras.world_from_cam))
    assert views[0] == pytest.approx(azimuth(example), abs=1e-5)
    np.testing.assert_allclose(np.diff(views) % (2 * np.pi), np.pi / 4, atol=1e-5)


def test_normals_of_a_ball_are_those_of_its_mirror_image(ball):
    example = anchor_data.example_from(ball, [1])
    both = [batch_of_one(x) for x in (example, anchor_data.mirrored(example))]
    for turned in ([x.true_inputs() for x in both], [x.true_views() for x in both]):
        one, other = (x[:, 1] for x in turned)
        inside = (one[..., 3] == 1) & (other[..., 3] == 1)
        assert inside.mean() > 0.3
        # On average: resampling overshoots at silhouettes, toward white on both sides.
        assert np.abs(one - other)[inside].mean() < 0.01


def test_labels_of_a_mirrored_example_are_those_of_the_example(ball):
    example = anchor_data.example_from(ball, [1])
    both = [batch_of_one(x) for x in (example, anchor_data.mirrored(example))]
    np.testing.assert_allclose(both[1].labels(None), both[0].labels(None), atol=1e-5)


def test_records_of_the_anchors_alone_make_the_same_examples(ball):
    alone = dataclasses.replace(
        ball,
        cameras=ball.cameras[np.asarray(ball.anchors)],
        maps={name: {v // 4: views[v] for v in ball.anchors} for name, views in ball.maps.items()},
        anchors=list(range(8)),
        inputs=list(range(8)),
        ring=[],
    )
    IMAGES.check(alone, SIZE_32)
    found = [IMAGES.example(record, np.random.default_rng(2), SIZE_32) for record in (ball, alone)]
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(one, other)


# -- Loss -------------------------------------------------------------------------------------------------------------


def test_the_last_step_gets_its_fraction():
    steps = common.training_steps(jax.random.key(0), 40, 0.25)
    assert (steps == 999).sum() == 10
    np.testing.assert_array_equal(jnp.floor(steps[:30] * 30 / 1000), jnp.arange(30))


DIFFUSION = anchor.Diffusion(prediction="v", zero_terminal_snr=True, shift=3.0)


class Oracle(denoisers.AnchorDenoiser):
    """Knows the clean latents that it is asked about."""

    def __init__(self, clean):
        self.clean = clean

    def tokens(self, images):
        return images[..., 0, :1, :]

    def __call__(self, noisy, time, condition):
        level = schedules.discrete_levels(time.astype(int), zero_terminal_snr=True, shift=DIFFUSION.shift)
        alpha, sigma = (x[:, None, None, None, None, None] for x in (level.alpha, level.sigma))
        return alpha * (noisy - alpha * self.clean) / sigma - sigma * self.clean


@pytest.fixture(scope="module")
def batch():
    """Random images of two objects, the second seen from another azimuth."""
    targets = jax.random.randint(jax.random.key(0), (2, 2, 8, 12, 12, 4), 0, 256).astype(jnp.uint8)
    rings = [cameras.ring(12, 8, offset=offset) for offset in (0.0, 1.0)]
    ring = jax.tree.map(lambda *rows: jnp.stack(rows), *rings)
    first = dataclasses.replace(
        ring, **{name: getattr(ring, name)[:, :1] for name in ("world_from_cam", "focal", "center")}
    )
    return anchor_data.Batch(targets[:, :, :1], first, targets, ring, jnp.ones(2, int))


def loss_of(batch, **changes):
    """Return the loss, and its parts, of a network that finds the true images."""
    values = {"terminal_step_fraction": 0.5, "estimated_normals_fraction": 0.5, "cond_dropout": 0.5} | changes
    diffusion = dataclasses.replace(DIFFUSION, input_cameras=values.pop("input_cameras", False))
    chosen = config.ComponentConfig(model=None, diffusion=diffusion, loss=anchor.Loss(**values))
    frozen = {"autoencoder": tiny.Painter(), "normals": lambda image: jnp.ones((*image.shape[:3], 3))}
    oracle = Oracle(2 * latents.network_image(batch.true_views(), 4))
    return STAGE.loss(oracle, frozen, batch, jax.random.key(1), chosen, cameras.RELEASED)


@pytest.fixture(scope="module", autouse=True)
def _painter():
    """Latents are images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latents, "encode", lambda module, image: module.encode(image)[0])
        yield


def test_a_network_that_finds_the_true_latents_has_no_loss(batch):
    loss, parts = loss_of(batch)
    assert loss < 1e-6 and "loss_image" not in parts


def test_a_network_that_finds_the_true_images_has_no_loss_of_either_kind(batch):
    loss, parts = loss_of(batch, image_weight=2.0)
    assert loss < 1e-5 and "loss_image" in parts


@pytest.mark.parametrize(("name", "position"), [("estimated_normals_fraction", 0), ("cond_dropout", 1)])
@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_conditions_are_chosen_by_their_fractions(batch, monkeypatch, name, position, fraction):
    asked = []
    prepare = anchor_data.Batch.prepare

    def keep(self, model, frozen, *choices):
        asked.append(choices)
        return prepare(self, model, frozen, *choices)

    monkeypatch.setattr(anchor_data.Batch, "prepare", keep)
    loss_of(batch, **{name: fraction})
    np.testing.assert_array_equal(asked[0][position], [bool(fraction)] * 2)


def test_sampling_takes_shifted_levels(monkeypatch):
    class PlannedError(Exception):
        pass

    def plan(grid, order):
        raise PlannedError(grid)

    monkeypatch.setattr(samplers, "plan", plan)
    inputs, labels, sampling = jnp.zeros((1, 2, 1, 12, 12, 4)), jnp.zeros((1, 2, 9, 12)), anchor.Sampling(num_steps=4)
    with pytest.raises(PlannedError) as planned:
        anchor.sample(Oracle(0), None, inputs, labels, jax.random.key(0), diffusion=DIFFUSION, sampling=sampling)
    expected = schedules.ddim_grid(4, zero_terminal_snr=True, shift=DIFFUSION.shift)
    np.testing.assert_allclose(planned.value.args[0].sigma, expected.sigma)


# -- Cached latents ---------------------------------------------------------------------------------------------------


def component(**loss):
    return config.ComponentConfig(
        model=None, loss=anchor.Loss(**loss), train=config.TrainSettings(steps=1, freeze=("image_encoder",))
    )


def test_a_stage_that_trains_its_image_encoder_has_no_cached_latents():
    chosen = dataclasses.replace(component(), train=config.TrainSettings(steps=1))
    with pytest.raises(
        ValueError, match="the anchor stage trains its image encoder, whose tokens are already in cached"
    ):
        STAGE.check_source("latents", chosen)


def test_a_loss_between_images_has_no_cached_latents():
    with pytest.raises(ValueError, match=r"anchor\.loss\.image_weight is 2\.0, but cached latents hold no images"):
        STAGE.check_source("latents", component(image_weight=2.0))


def test_a_frozen_image_encoder_and_no_loss_between_images_fit_cached_latents():
    STAGE.check_source("latents", component())


def test_images_serve_any_settings():
    STAGE.check_source("images", dataclasses.replace(component(image_weight=2.0), train=None))


# -- Several inputs ---------------------------------------------------------------------------------------------------


def config_of(**diffusion):
    """A system whose anchor stage takes several inputs."""
    values = SIZE_32.to_dict()
    values["anchor"]["diffusion"] |= diffusion
    return stages.parse_config(values)


@pytest.fixture(scope="module")
def photographed(ball):
    """The ball with three inputs from cameras of their own, at azimuths 0, 100 and 200 and elevation 30."""
    views = [cameras.ring(32, 1, offset=np.radians(x), elevation=np.radians(30)) for x in (0, 100, 200)]
    return dataclasses.replace(
        ball,
        cameras=jax.tree.map(lambda *parts: np.concatenate(parts), ball.cameras, *views),
        maps={name: {**maps, **{32 + i: maps[4 * i] for i in range(3)}} for name, maps in ball.maps.items()},
        inputs=[32, 33, 34],
    )


def test_a_view_of_the_layout_may_be_the_first_input_and_of_others_only_number_0(ball, photographed):
    assert anchor_data.num_fronts(ball) == 8 and anchor_data.num_fronts(photographed) == 1


def test_one_to_all_inputs_are_chosen_without_repetition():
    chosen = [anchor_data.choose_inputs(1, 5, 4, np.random.default_rng(seed)) for seed in range(200)]
    assert all(each[0] == 0 and len(set(each)) == len(each) for each in chosen)
    counts = np.bincount([len(each) for each in chosen], minlength=5)
    assert counts[0] == 0 and (counts[1:] > 30).all() and {x for each in chosen for x in each} == set(range(5))


def test_an_example_has_its_inputs_in_order_and_repeats_the_first_in_place_of_others(photographed):
    example = anchor_data.example_from(photographed, [0, 2], slots=3)
    assert example.count == 2
    for slot, view in enumerate((32, 34, 32)):
        np.testing.assert_array_equal(example.inputs[0, slot], photographed.image(view))
        np.testing.assert_array_equal(example.input_cameras.focal[slot], photographed.cameras.focal[view])


def test_examples_of_several_inputs_have_the_promised_shapes(photographed):
    chosen = config_of(max_inputs=3)
    IMAGES.check(photographed, chosen)
    row, spec = IMAGES.example(photographed, np.random.default_rng(0), chosen), IMAGES.spec(chosen)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(row)] == [(x.shape, x.dtype) for x in jax.tree.leaves(spec)]


def test_records_with_too_few_inputs_are_refused(photographed):
    said = "holds 3 input images per object, but anchor.diffusion.max_inputs is 4; draw the objects with --inputs=4"
    with pytest.raises(ValueError, match=said):
        IMAGES.check(photographed, config_of(max_inputs=4))


def test_without_injection_there_is_one_input():
    values = config_of(max_inputs=2).to_dict()
    values["anchor"]["model"]["injection"] = False
    with pytest.raises(ValueError, match=r"max_inputs is 2; expected 1 without anchor\.model\.injection"):
        stages.parse_config(values)


def test_labels_of_inputs_state_field_of_view_and_elevation_where_known(photographed):
    batch = batch_of_one(anchor_data.example_from(photographed, [0, 1, 2], slots=3))
    known = jnp.array([[[True, True], [False, True], [True, False]]])
    fov = cameras.fov_of(cameras.ring(32, 1))[0]
    labels = batch.labels(known)[0, 0, 8:]
    circle = np.stack([labels[:, :3], labels[:, 6:9]], -1)  # sine, cosine
    angles = np.array([[fov, np.pi / 6, 0], [fov, np.pi / 6, np.radians(100)], [fov, np.pi / 6, np.radians(200)]])
    expected = np.stack([np.sin(angles), np.cos(angles)], -1)
    expected[1, 0] = expected[2, 1] = 0
    np.testing.assert_allclose(circle, expected, atol=1e-5)


def test_labels_of_views_do_not_depend_on_what_is_known_of_inputs(photographed):
    batch = batch_of_one(anchor_data.example_from(photographed, [0, 1, 2], slots=3))
    nothing = batch.labels(jnp.zeros((1, 3, 2), bool))
    np.testing.assert_array_equal(nothing[:, :, :8], batch.labels(None)[:, :, :8])


def test_all_normal_maps_are_in_the_frame_of_the_first_input(photographed):
    """The estimator sees the ball's own normals; turned, they are those that were rendered."""
    example = batch_of_one(anchor_data.example_from(with_true_views(photographed), [0, 1, 2], slots=3))
    true = example.true_inputs()
    poses = example.input_cameras.world_from_cam
    relative = cameras.relative_azimuth(poses, poses[:, :1])
    back = jnp.stack([latents.turn_normals(true[:, 1, i], relative[:, i]) for i in range(3)], 1)
    np.testing.assert_allclose(anchor_data.turn_others(back, poses), true[:, 1], atol=1e-5)


def with_true_views(record):
    return dataclasses.replace(record, inputs=[0, 8, 20])


def test_a_mirrored_input_is_at_the_opposite_azimuth(photographed):
    example = anchor_data.mirrored(anchor_data.example_from(photographed, [0, 1], slots=2))
    azimuths = np.degrees(cameras.azimuth_of(np.asarray(example.input_cameras.world_from_cam)))
    np.testing.assert_allclose(azimuths, [0, 260], atol=1e-3)
    np.testing.assert_array_equal(example.inputs[0, 1], photographed.image(33)[:, ::-1])


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_cameras_are_known_by_their_fraction(batch, monkeypatch, fraction):
    asked = []
    prepare = anchor_data.Batch.prepare

    def keep(self, model, frozen, estimated, dropped, known):
        asked.append(known)
        return prepare(self, model, frozen, estimated, dropped, known)

    monkeypatch.setattr(anchor_data.Batch, "prepare", keep)
    loss_of(batch, input_cameras=True, known_cameras_fraction=fraction)
    np.testing.assert_array_equal(asked[0], np.full((2, 1, 2), bool(fraction)))


@pytest.mark.parametrize("stage", ["anchor", "interpolation"])
def test_guidance_that_was_not_trained_is_refused(stage):
    values = SIZE_32.to_dict()
    values[stage]["sampling"]["guidance"] = 2.0
    with pytest.raises(
        ValueError, match=rf"{stage}\.sampling\.guidance is 2\.0; expected 1, as {stage}\.loss\.cond_dro"
    ):
        stages.parse_config(values)
    values[stage]["loss"]["cond_dropout"] = 0.1
    stages.parse_config(values)
