"""The weights that ship with the package."""

import pathlib

import jax
import numpy as np
import pytest

import e3d_jax
from e3d_jax import settings, stages
from e3d_jax.presets import mini
from e3d_jax.weights import folder

CAKE = pathlib.Path(__file__).parents[1] / "examples" / "cake.png"
BUNDLED = folder.resolve("mini")


def test_bundled_weights_are_those_of_the_config():
    given = stages.parse_config(mini.get_config().to_dict())
    assert settings.differences(folder.read_config(BUNDLED).identity(), given.identity()) == []


def test_a_config_without_injection_has_its_default():
    values = folder.read_config(BUNDLED).to_dict()
    del values["anchor"]["model"]["injection"]
    assert stages.parse_config(values)["anchor"].model.injection


def test_bundled_weights_are_small():
    assert sum(file.stat().st_size for file in BUNDLED.glob("*.safetensors")) < 60e6


@pytest.mark.slow
def test_the_bundled_system_keeps_the_color_of_its_input():
    system = e3d_jax.load("mini")
    image = system.prepare(CAKE).image
    front = system.anchors([[system.prepare(CAKE)]], jax.random.key(0))[0, 0, 0]
    inside, given = front[..., 3] > 0.5, image[..., 3] > 0.5
    assert inside.mean() > 0.1
    np.testing.assert_allclose(front[inside, :3].mean(0), image[given, :3].mean(0), atol=0.05)
