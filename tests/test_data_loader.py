"""Examples of every stage, and batches that depend on the seed alone."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from absl import flags

from e3d_jax import cameras, images
from e3d_jax.data import loader, records
from e3d_jax.models import latents
from tests.conftest import ball_record


def _example(ball, stage, seed=0):
    return loader.EXAMPLES[stage](ball, np.random.default_rng(seed))


def test_autoencoder_sees_both_domains(ball):
    image = _example(ball, "autoencoder")["image"]
    reds = [len(np.unique(x[x[..., 3] == 255][:, :3], axis=0)) for x in image]
    assert max(reds[:4]) <= 2 < min(reds[4:]), "colour views have two colours, normal maps many"


def test_condition_is_framed_like_a_picture(ball):
    condition = _example(ball, "anchor")["condition"]
    box = images.object_box(condition[0, ..., 3] / 255)
    np.testing.assert_allclose(box, (0, 0, 32), atol=1.5)


def test_anchors_start_at_the_input_view(ball):
    for first in range(8):
        example = loader.seen_from(ball, first)
        assert example["azimuth"] == pytest.approx(first * np.pi / 4)
        np.testing.assert_array_equal(example["target"][0, 0], ball.view(4 * first))
        np.testing.assert_array_equal(example["target"][1, 1], ball.normal(4 * ((first + 1) % 8)))


def test_half_of_the_anchor_examples_are_mirrored(ball):
    azimuths = np.array([_example(ball, "anchor", seed)["azimuth"] for seed in range(200)])
    assert 0.3 < (azimuths[azimuths != 0] < 0).mean() < 0.7


def test_a_mirror_swaps_left_and_right_views(ball):
    example = loader.seen_from(ball, 2)
    colour, mirror = example["target"][0], loader.mirrored(example)["target"][0]
    for view in range(8):
        np.testing.assert_array_equal(mirror[view], colour[-view % 8][:, ::-1])


def test_normals_of_a_ball_are_those_of_its_mirror_image(ball):
    example = loader.seen_from(ball, 1)
    both = (example, loader.mirrored(example))
    for name in ("condition", "target"):
        turned = [
            latents.turn_normals(jnp.asarray(x[name][1] / 255)[None], jnp.asarray(x["azimuth"])[None]) for x in both
        ]
        inside = (turned[0][..., 3] == 1) & (turned[1][..., 3] == 1)
        assert inside.mean() > 0.3
        # On average: resampling overshoots at silhouettes, toward white on both sides.
        assert np.abs(turned[0] - turned[1])[inside].mean() < 0.01


def test_windows_are_consecutive_views(ball):
    window = _example(ball, "interpolation", 3)["window"]
    starts = [a for a in range(8) if np.array_equal(window[0], ball.view(4 * a))]
    expected = np.stack([ball.view(v) for v in cameras.window_views(starts[0])])
    np.testing.assert_array_equal(window, expected)


@pytest.mark.parametrize("stage", loader.EXAMPLES)
def test_same_seed_same_batches(ball_folder, stage):
    first, second = (loader.make_loader({str(ball_folder): 1.0}, stage, batch_size=2, seed=1) for _ in range(2))
    for _ in range(3):
        a, b = next(first), next(second)
        assert all(np.array_equal(a[k], b[k]) for k in a)


def test_another_seed_gives_other_batches(ball_folder):
    first, second = (next(loader.make_loader({str(ball_folder): 1.0}, "anchor", batch_size=8, seed=s)) for s in (1, 2))
    assert not np.array_equal(first["azimuth"], second["azimuth"])


def test_a_loader_starts_at_any_batch(ball_folder):
    batches = loader.make_loader({str(ball_folder): 1.0}, "normals", batch_size=2, seed=0)
    expected = [next(batches) for _ in range(7)][5:]
    later = loader.make_loader({str(ball_folder): 1.0}, "normals", batch_size=2, seed=0, start=5)
    for batch in expected:
        jax.tree.map(np.testing.assert_array_equal, next(later), batch)


def test_processes_read_the_rows_of_one_batch(ball_folder):
    load = functools.partial(loader.make_loader, {str(ball_folder): 1.0}, "normals", batch_size=4, seed=0)
    whole, first, second = (itertools.islice(load(rows=rows), 3) for rows in (None, [0, 3], [1, 2]))
    for batch, a, b in zip(whole, first, second, strict=True):
        np.testing.assert_array_equal(batch["image"][[0, 3, 1, 2]], np.concatenate([a["image"], b["image"]]))


def test_workers_change_nothing(ball_folder):
    flags.FLAGS.mark_as_parsed()  # Grain reads some of its own.
    load = functools.partial(loader.make_loader, {str(ball_folder): 1.0}, "normals", batch_size=2, seed=0)
    for alone, helped in zip(itertools.islice(load(), 4), load(workers=2), strict=False):
        jax.tree.map(np.testing.assert_array_equal, alone, helped)


def test_record_sets_are_mixed_by_their_shares(ball_folder, tmp_path):
    with records.Writer(tmp_path / "other.array_record") as writer:
        writer.write(records.pack(dataclasses.replace(ball_record(), id="other")))
    mixed = loader.make_loader({str(ball_folder): 3.0, str(tmp_path): 1.0}, "normals", batch_size=8, seed=0)
    ids = np.concatenate([batch["id"] for batch in itertools.islice(mixed, 2)])
    assert (ids == "other").sum() == 4


def test_records_of_another_schema_are_refused(tmp_path):
    with records.Writer(tmp_path / "old.array_record") as writer:
        writer.write(msgpack.packb({"schema": 0}))
    with pytest.raises(ValueError, match=f"{tmp_path}: a record has schema version 0"):
        loader.make_loader({str(tmp_path): 1.0}, "normals", batch_size=1, seed=0)


def test_shares_of_record_sets_are_read():
    assert loader.parse_shares(["a@b/c", "d@0.5"]) == {"a@b/c": 1.0, "d": 0.5}


def test_a_share_is_a_positive_number(ball_folder):
    with pytest.raises(ValueError, match="give positive numbers"):
        loader.make_loader({str(ball_folder): float("nan")}, "anchor", batch_size=1, seed=0)


def test_fewer_records_than_a_batch_is_refused(ball_folder):
    with pytest.raises(ValueError, match="8 records, fewer than one batch of 9"):
        loader.make_loader({str(ball_folder): 1.0}, "anchor", batch_size=9, seed=0)


def anchors_alone(record):
    """A record without the views between the anchors."""
    poses = jax.tree.map(lambda x: x[cameras.ANCHORS], record.cameras)
    views = [record.views[i] for i in cameras.ANCHORS]
    return dataclasses.replace(record, views=views, normal_views=list(range(8)), cameras=poses)


def test_anchors_alone_make_the_same_examples(ball):
    whole, alone = (_example(record, "anchor", 2) for record in (ball, anchors_alone(ball)))
    assert all(np.array_equal(whole[name], alone[name]) for name in whole)


def test_interpolation_wants_the_views_between_anchors(tmp_path, ball):
    with records.Writer(tmp_path / "few.array_record") as writer:
        writer.write(records.pack(anchors_alone(ball)))
    assert not loader.holds_encoded([str(tmp_path)], "anchor", size=32, latent_size=8)
    with pytest.raises(ValueError, match="8 views an object, the interpolation learns from 32; draw them with"):
        loader.holds_encoded([str(tmp_path)], "interpolation", size=32, latent_size=8)


def test_pictures_of_another_size_are_refused(ball_folder):
    with pytest.raises(ValueError, match="pictures of 32 px, the config wants 128"):
        loader.holds_encoded([str(ball_folder)], "anchor", size=128, latent_size=16)


def test_only_the_interpolation_does_without_normal_maps(tmp_path, ball):
    with records.Writer(tmp_path / "bare.array_record") as writer:
        writer.write(records.pack(dataclasses.replace(ball, normal_views=[], normals=[])))
    assert not loader.holds_encoded([str(tmp_path)], "interpolation", size=32, latent_size=8)
    with pytest.raises(ValueError, match="no normal maps of the anchors, from which the autoencoder learns"):
        loader.holds_encoded([str(tmp_path)], "autoencoder", size=32, latent_size=8)
