"""Examples of every stage, and batches that depend on the seed alone."""

import numpy as np
import pytest

from e3d_jax import cameras, images
from e3d_jax.data import loader


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
    for seed in range(8):
        example = _example(ball, "anchor", seed)
        first = round(example["azimuth"] / (np.pi / 4))
        np.testing.assert_array_equal(example["target"][0, 0], ball.view(4 * first))
        np.testing.assert_array_equal(example["target"][1, 1], ball.normal(4 * ((first + 1) % 8)))


def test_windows_are_consecutive_views(ball):
    window = _example(ball, "interpolation", 3)["window"]
    starts = [a for a in range(8) if np.array_equal(window[0], ball.view(4 * a))]
    expected = np.stack([ball.view(v) for v in cameras.window_views(starts[0])])
    np.testing.assert_array_equal(window, expected)


@pytest.mark.parametrize("stage", loader.EXAMPLES)
def test_same_seed_same_batches(ball_folder, stage):
    first, second = (loader.make_loader(ball_folder, stage, batch_size=2, seed=1) for _ in range(2))
    for _ in range(3):
        a, b = next(first), next(second)
        assert all(np.array_equal(a[k], b[k]) for k in a)


def test_another_seed_gives_other_batches(ball_folder):
    first, second = (next(loader.make_loader(ball_folder, "anchor", batch_size=8, seed=s)) for s in (1, 2))
    assert not np.array_equal(first["azimuth"], second["azimuth"])


def test_a_saved_iterator_continues_where_it_stopped(ball_folder):
    iterator = loader.make_loader(ball_folder, "normals", batch_size=2, seed=0)
    next(iterator)
    state = iterator.get_state()
    expected = next(iterator)
    iterator.set_state(state)
    np.testing.assert_array_equal(next(iterator)["azimuth"], expected["azimuth"])


def test_processes_share_the_records(ball_folder):
    shares = [
        loader.make_loader(ball_folder, "autoencoder", batch_size=4, seed=0, process_index=i, process_count=2)
        for i in range(2)
    ]
    a, b = (next(share)["image"] for share in shares)
    assert a.shape == b.shape == (4, 8, 32, 32, 4)
    assert not np.array_equal(a, b)


def test_fewer_records_than_a_batch_is_refused(ball_folder):
    with pytest.raises(ValueError, match="8 records, fewer than one batch of 9"):
        loader.make_loader(ball_folder, "anchor", batch_size=9, seed=0)
