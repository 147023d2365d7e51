"""Settings of a reconstruction: defaults, ranges, presets."""

import dataclasses

import numpy as np
import pytest

from e3d_jax import settings
from e3d_jax.reconstruction import config
from tests import sphere


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", 45, "steps is 45; expected a multiple of steps_per_chunk, 30"),
        ("steps_per_chunk", 0, "steps_per_chunk is 0; expected at least 1"),
        ("rays", 0, "rays is 0; expected at least 1"),
        ("color_weight", np.inf, "color_weight is inf; expected"),
        ("levels", (8, -1), "levels is .*; expected at least 1"),
        ("levels", (0, 8), "levels is .*; expected at least 1"),
    ],
)
def test_fit_settings_out_of_range_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(sphere.TINY, **{name: value})


def test_surface_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="texture_size is 0; expected at least 16 and at most 16384"):
        config.ReconstructionSettings(texture_size=0)


def test_settings_are_parsed_from_a_nested_mapping():
    parsed = settings.parse(config.ReconstructionSettings, {"resolution": 192, "fit": {"steps": 1000, "levels": [8]}})
    assert parsed == config.ReconstructionSettings(resolution=192, fit=config.FitSettings(steps=1000, levels=(8,)))


def test_an_unknown_setting_is_named_with_its_group():
    with pytest.raises(ValueError, match=r"unknown setting reconstruction\.fit\.magic"):
        settings.parse(config.ReconstructionSettings, {"fit": {"magic": 1}}, "reconstruction")


def test_equal_settings_are_equal_static_arguments():
    assert hash(config.FitSettings(levels=(8, 16))) == hash(config.FitSettings(levels=(8, 16)))


def test_every_setting_is_explained():
    assert all(doc for *_, doc in settings.described(config.ReconstructionSettings))


def test_qualities_are_ordered_from_fast_to_best():
    steps = [quality.fit.steps for quality in config.QUALITIES.values()]
    faces = [quality.max_faces for quality in config.QUALITIES.values()]
    assert steps == sorted(steps) and faces == sorted(faces)


def test_a_quality_keeps_what_depends_on_the_views():
    fit = config.FitSettings(mask_contrast=8.0, steps=50)
    best = config.at_quality(config.ReconstructionSettings(smoothing=1.0, fit=fit), "best")
    assert (best.smoothing, best.fit.mask_contrast, best.fit.depth_width) == (1.0, 8.0, 0)
    assert (best.max_faces, best.fit.steps) == (40_000, 4000)


def test_changed_steps_shorten_the_chunks_to_divide_them():
    changed = config.changed(config.ReconstructionSettings(), steps=120, resolution=None)
    assert (changed.fit.steps, changed.fit.steps_per_chunk, changed.resolution) == (120, 10, 128)
