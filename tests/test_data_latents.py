"""Cached latents survive the disk, and are read by the stage that they were made for."""

import jax.numpy as jnp
import numpy as np
import pytest

from e3d_jax.data import latents, records


@pytest.fixture(scope="module")
def cached():
    arrays = {
        "views": np.arange(6, dtype=np.float16).reshape(1, 2, 3),
        "order": np.array([[2, 0, 1]], np.int32),
        "strength": np.float32(0.5),
    }
    return latents.Latents("a", "anchor", {name: np.asarray(x) for name, x in arrays.items()})


def test_arrays_come_back_with_their_types_and_shapes(cached):
    found = latents.unpack(latents.pack(cached), "anchor")
    assert found.id == "a" and list(found.arrays) == list(cached.arrays)
    for name, array in cached.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array, strict=True)


def test_a_type_that_cannot_be_read_back_is_refused():
    arrays = {"tokens": np.zeros(2, jnp.bfloat16)}
    with pytest.raises(ValueError, match="array 'tokens' of 'a' is bfloat16, which records cannot hold; use float16"):
        latents.pack(latents.Latents("a", "anchor", arrays))


def test_their_kind_is_latents(cached):
    assert records.kind_of(latents.pack(cached)) == "latents"


def test_latents_of_another_stage_are_refused(cached):
    with pytest.raises(ValueError, match=r"cached for stage anchor, not interpolation; run .* --stage=interpolation"):
        latents.unpack(latents.pack(cached), "interpolation")


def test_images_are_not_read_as_latents(ball):
    with pytest.raises(ValueError, match="a record holds images, not cached latents"):
        latents.unpack(records.pack(ball), "anchor")
