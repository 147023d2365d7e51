"""Images of synthetic objects, against a ball whose image is known, and against their own fields."""

import dataclasses

import jax
import numpy as np
import pytest
from array_record.python import array_record_module

from e3d_jax import cameras
from e3d_jax.data import engine, records, synthetic
from e3d_jax.data.synthetic import jobs, objects, shapes
from e3d_jax.images import FILL

# Not a multiple of a tile's: tiles that reach over the edge are covered, too.
SIZE = 50


@pytest.fixture(scope="module")
def drawn() -> tuple[objects.ObjectParams, synthetic.Images]:
    """A ball of radius 0.4 and three sampled objects, rendered together."""
    one = synthetic.sample_object("test", 0, 0)
    solids = shapes.pack([shapes.ellipsoid((0, 0, 0), (0.4, 0.4, 0.4))])
    flat = dataclasses.replace(one, solids=solids, ripple=np.array([0, 1], np.float32))
    sampled = synthetic.sample_batch("test", 1, range(3))
    batch = jax.tree.map(lambda a, b: np.concatenate([a[None], b]), flat, sampled)
    return batch, jax.tree.map(np.asarray, synthetic.render(batch, cameras.ring(SIZE, 4)))


@pytest.fixture(scope="module")
def ball(drawn) -> tuple[objects.ObjectParams, synthetic.Images]:
    return jax.tree.map(lambda a: a[:1], drawn)


def test_shapes_of_images(ball):
    images = ball[1]
    assert images.rgba.shape == (1, 4, SIZE, SIZE, 4)
    assert images.normals.shape == (1, 4, SIZE, SIZE, 3)
    assert images.depth.shape == (1, 4, SIZE, SIZE)


def test_coverage_is_the_area_of_the_disc(ball):
    # A ball of radius r at distance d covers a disc of radius f r / sqrt(d^2 - r^2).
    radius = cameras.RELEASED.focal * SIZE * 0.4 / np.sqrt(1.5**2 - 0.4**2)
    np.testing.assert_allclose(ball[1].rgba[..., 3].sum((2, 3)), np.pi * radius**2, rtol=0.01)


def test_depth_of_the_nearest_point(ball):
    assert ball[1].depth[0, 0, SIZE // 2, SIZE // 2] == pytest.approx(1.1, abs=2e-3)


def test_normals_point_from_the_center_in_the_world_frame(ball):
    images, rays = ball[1], cameras.image_rays(cameras.ring(SIZE, 4))
    directions = np.asarray(rays.directions)
    forward = cameras.ring(SIZE, 4).world_from_cam[:, None, None, :3, 2]
    along = images.depth[0] / (directions * forward).sum(-1)
    points = np.asarray(rays.origins) + along[..., None] * directions
    inside = images.rgba[0, ..., 3] == 1
    np.testing.assert_allclose(images.normals[0][inside], points[inside] / 0.4, atol=0.02)


def test_background_is_white_and_without_normals(ball):
    images = ball[1]
    empty = images.rgba[..., 3] == 0
    assert empty.any()
    assert (images.rgba[..., :3][empty] == 1).all()
    assert (images.normals[empty] == 0).all()
    assert (images.depth[empty] == 0).all()


def test_edges_are_smooth(ball):
    alpha = ball[1].rgba[..., 3]
    assert ((alpha > 0.05) & (alpha < 0.95)).sum() > 4 * SIZE


def test_light_is_fixed_in_the_world(ball):
    """Seen from two sides, the top is brighter than the bottom by the same shading of the same albedo."""
    batch, images = ball
    toward_camera = images.rgba[0, :, SIZE // 2, SIZE // 2, :3].mean(-1)
    directions, colors = batch.lights.directions[0], batch.lights.colors[0].mean(-1)
    azimuth = cameras.azimuths(4)
    normals = np.stack([np.cos(azimuth), np.sin(azimuth), 0 * azimuth], -1)
    light = batch.lights.ambient[0].mean() + (colors * (0.5 + 0.5 * normals @ directions.T)).sum(-1)
    points = 0.4 * normals
    albedo = np.asarray(synthetic.albedo(objects.take(batch, 0), points)).mean(-1)
    np.testing.assert_allclose(toward_camera, albedo * light, atol=0.05)


def test_silhouettes_agree_with_the_field(drawn):
    rays = cameras.image_rays(cameras.ring(SIZE, 4))
    t = np.linspace(0.97, 2.03, 250)[:, None, None, None, None]
    points = np.asarray(rays.origins) + t * np.asarray(rays.directions)
    sdf = jax.jit(synthetic.sdf)
    for i in range(1, 4):
        hit = np.asarray(sdf(objects.take(drawn[0], i), points)).min(0) < 0
        alpha = drawn[1].rgba[i, ..., 3]
        assert (hit != (alpha > 0.5)).mean() < 0.01
        assert alpha.mean() == pytest.approx(hit.mean(), rel=0.06)


def test_an_image_that_ends_inside_a_tile_is_symmetric(ball):
    # The right and lower pixels of a ball's image are the left and upper ones.
    alpha = ball[1].rgba[..., 3]
    np.testing.assert_allclose(alpha, alpha[..., ::-1], atol=0.02)


def test_an_object_does_not_depend_on_those_beside_it(drawn):
    params, images = drawn
    copies = jax.tree.map(lambda x: np.repeat(x[-1:], 4, 0), params)
    np.testing.assert_allclose(synthetic.render(copies, cameras.ring(SIZE, 4)).rgba[0], images.rgba[-1], atol=1e-4)


def generate(indices, size=12, **more):
    """Draw objects from four cameras, with normal maps of two, two objects at a time."""
    options = {"cameras": cameras.ring(size, 4), "normal_views": np.array([0, 2]), "batch": 2} | more
    return list(synthetic.generate("test", 2, indices, **options))


@pytest.fixture(scope="module")
def examples():
    return generate(range(4, 7))


@pytest.mark.slow
def test_examples_have_their_views_and_normal_maps(examples):
    assert [example.index for example in examples] == [4, 5, 6]
    assert examples[0].rgba.shape == (4, 12, 12, 4)
    assert examples[0].normals.shape == (2, 12, 12, 4)


@pytest.mark.slow
def test_examples_do_not_depend_on_the_batch(examples):
    alone = generate([5])
    np.testing.assert_allclose(examples[1].rgba.astype(int), alone[0].rgba.astype(int), atol=1)


def test_generate_refuses_an_empty_image():
    with pytest.raises(ValueError, match="at least 1"):
        generate([0], size=0)


def write(out, count, **more):
    rig = records.Rig(cameras.ring(12, 4), anchors=(0, 2), ring=(0, 1, 2, 3), inputs=(0,), normal_views=(0, 2))
    return jobs.write_records(out, count, rig, split="test", seed=2, batch=2, workers=0, **more)


def names(folder):
    return sorted(path.name.removesuffix(".array_record") for path in folder.glob("*.array_record"))


@pytest.mark.slow
def test_records_hold_the_examples(tmp_path, examples):
    assert write(tmp_path, 5) == (5, 0, 0, 0)
    (shard,) = records.find_shards(tmp_path)
    record = records.unpack(array_record_module.ArrayRecordReader(shard).read_all()[4])
    assert (record.id, record.size, record.views_with("normal")) == ("test-2-4", 12, [0, 2])
    np.testing.assert_allclose(record.image(3).astype(int), examples[0].rgba[3].astype(int), atol=1)


@pytest.mark.slow
def test_a_larger_number_of_objects_extends_a_dataset(tmp_path):
    write(tmp_path, 2)
    assert write(tmp_path, 3) == (1, 2, 0, 0)
    assert names(tmp_path) == ["test-2-00000000-0002", "test-2-00000002-0001"]
    assert write(tmp_path, 3) == (0, 3, 0, 0)


def test_no_more_objects_are_drawn_at_once_than_a_shard_has(tmp_path):
    done = []

    def note(job, workers):
        done.append(job.make_work.args[-1])
        return engine.Counts(0, 0, 0, 0)

    for count in (1, 300):
        write(tmp_path, count, runner=note)
    assert done == [1, 2]


def test_shards_of_a_job_share_the_blocks_of_objects(tmp_path):
    parts = [jobs.plan(tmp_path, 600, "train", 0, (index, 2)) for index in (0, 1)]
    assert [[shard.name for shard in shards] for shards, _ in parts] == [
        ["train-0-00000000-0256", "train-0-00000512-0088"],
        ["train-0-00000256-0256"],
    ]


def test_objects_of_another_split_or_seed_are_not_taken_for_these(tmp_path):
    for name in ("test-0-00000000-0256", "train-1-00000000-0256"):
        (tmp_path / f"{name}.array_record").touch()
    shards, already = jobs.plan(tmp_path, 256, "train", 0)
    assert already == 0 and shards[0].items == list(range(256))


INPUTS = cameras.InputCameras(count=2, effects=0.0)


@pytest.fixture(scope="module")
def photographed(tmp_path_factory):
    """A record of an object with two input images."""
    out = tmp_path_factory.mktemp("photographed")
    write(out, 1, inputs=INPUTS)
    (shard,) = records.find_shards(out)
    return records.unpack(array_record_module.ArrayRecordReader(shard).read_all()[0])


@pytest.mark.slow
def test_input_images_come_after_the_views_with_their_normal_maps(photographed):
    assert list(photographed.inputs) == [4, 5] and photographed.views_with("normal") == [0, 2, 4, 5]
    assert cameras.azimuth_of(photographed.cameras.world_from_cam)[4] == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
def test_input_images_are_framed_and_their_cameras_are_those_of_the_crops(photographed):
    params = synthetic.normalize(synthetic.stack([synthetic.sample_object("test", 2, 0)]))
    for view in photographed.inputs:
        seen = synthetic.render(params, photographed.cameras[[view]]).rgba[0, 0, ..., 3]
        np.testing.assert_allclose(255 * seen, photographed.image(view)[..., 3], atol=3)
        columns, rows = (np.flatnonzero((seen > 0.3).any(axis)) for axis in (0, 1))
        assert max(np.ptp(columns), np.ptp(rows)) + 1 == pytest.approx(FILL * 12, abs=2)


@pytest.mark.slow
def test_objects_may_have_cameras_of_their_own(drawn):
    params, found = drawn
    ring = cameras.ring(SIZE, 4)
    own = jax.tree.map(lambda x: np.stack([np.roll(x, -row, 0) for row in range(len(params.scale))]), ring)
    turned = synthetic.render(params, own).rgba
    for row in range(len(turned)):
        np.testing.assert_allclose(turned[row], np.roll(found.rgba[row], -row, 0), atol=1e-3)
