"""The configs that ship with the package, and those of files."""

import json
import pathlib
import sys

import pytest

from e3d_jax import presets, stages

ROOT = pathlib.Path(__file__).parents[1]


PRESETS = ("mini", "mini:smoke", "base", "base:smoke", "envision3d", "envision3d:released", "envision3d:smoke")


@pytest.fixture(params=PRESETS)
def preset(request):
    return presets.load(request.param)


def test_a_preset_is_a_config_from_json_too(preset):
    stages.parse_config(json.loads(json.dumps(preset.to_dict())))


def test_a_preset_holds_every_setting(preset):
    values = json.loads(json.dumps(preset.to_dict()))
    assert stages.parse_config(values).to_dict() == values


def test_settings_can_be_changed_but_not_added(preset):
    preset.anchor.sampling.num_steps = 7
    with pytest.raises(AttributeError):
        preset.anchor.sampling.magic = 3.0


def test_settings_that_are_none_can_be_given_numbers():
    config = presets.load("mini")
    config.interpolation.sampling.noise_aug_level = 0.5
    assert stages.parse_config(config.to_dict())["interpolation"].sampling.given_noise == 0.5


@pytest.mark.parametrize("name", presets.NAMES)
def test_files_for_editing_are_the_presets(name):
    assert presets.load(str(ROOT / f"configs/{name}.py:smoke")) == presets.load(f"{name}:smoke")


@pytest.mark.parametrize(("name", "known"), [("mini", "smoke"), ("envision3d", "released and smoke")])
def test_an_unknown_variant_is_refused(name, known):
    with pytest.raises(ValueError, match=f"{name} has no variant 'magic'; there is {known}"):
        presets.load(f"{name}:magic")


def test_a_missing_file_is_named_with_the_presets():
    with pytest.raises(FileNotFoundError, match=r"no config nowhere\.py; give one of mini, base, envision3d, or a"):
        presets.load("nowhere.py")


def test_a_file_that_fails_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("def get_config():\n    raise RuntimeError('no luck')\n")
    with pytest.raises(ValueError, match=r"broken\.py is not a config \(RuntimeError: no luck\)"):
        presets.load(str(tmp_path / "broken.py"))


def test_views_of_released_weights_have_nearer_cameras():
    radii = [presets.load(f"envision3d{variant}").layout.radius for variant in ("", ":released")]
    assert radii == [1.5, 1.3]


def test_the_release_gives_a_noise_level_without_adding_noise():
    sampling = stages.parse_config(presets.load("envision3d").to_dict())["interpolation"].sampling
    assert (sampling.anchor_noise, sampling.given_noise) == (0.0, 0.02)


def test_a_config_file_may_import_modules_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "beside_the_config.py").write_text("VARIANT = 'smoke'\n")
    (tmp_path / "own.py").write_text(
        "import beside_the_config\nfrom e3d_jax.presets import mini\n\n"
        "def get_config():\n    return mini.get_config(beside_the_config.VARIANT)\n"
    )
    assert presets.load(str(tmp_path / "own.py")).anchor.train.steps == 4
