"""The config of a system: components that may be missing, and settings that must fit each other."""

import json

import pytest

from e3d_jax import config as config_lib
from e3d_jax import presets, settings, stages
from tests import tiny


def without(*components):
    return {name: value for name, value in tiny.system_values().items() if name not in components}


def changed(path, value):
    """Return the settings of the mini system's smoke variant with one of them changed, or added."""
    values = presets.load("mini:smoke").to_dict()
    *parents, last = path.split(".")
    part = values
    for name in parents:
        part = part[name]
    part[last] = value
    return values


def identities(path, value):
    """Return whether a system with one setting changed is still the same to its weights."""
    return stages.parse_config(changed(path, value)).identity() == presets_identity()


def presets_identity():
    return stages.parse_config(presets.load("mini:smoke").to_dict()).identity()


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("anchor.sampling.num_steps", 0, "anchor.sampling.num_steps is 0; expected at least 1 and at most 999"),
        ("interpolation.sampling.num_steps", 1000, "interpolation.sampling.num_steps is 1000"),
        ("anchor.sampling.sampler", "magic", "expected one of ddim, euler, dpm_solver"),
        ("interpolation.sampling.noise_max", float("nan"), "noise_max is nan"),
        ("interpolation.sampling.anchor_noise", -0.1, "anchor_noise is -0.1"),
        ("anchor.sampling.magic", 3.0, "unknown setting anchor.sampling.magic; known: guidance, num_steps, sampler"),
        ("anchor.loss.terminal_step_fraction", 1.0, "fraction is 1.0; expected at least 0 and below 1"),
        (
            "anchor.model.unet.in_channels",
            6,
            "anchor.model.unet.in_channels is 6; expected 16, as the autoencoder has 8",
        ),
        ("interpolation.model.unet.out_channels", 4, "out_channels is 4; expected 8, as the autoencoder has 8"),
        ("anchor.model.image_encoder.projection_dim", 5, "cross_attention_dim is .*; expected 5, the image_encoder's"),
        ("anchor.magic", {}, "unknown setting anchor.magic; known: model, diffusion, loss, sampling, train"),
        ("autoencoder.sampling", {}, "unknown setting autoencoder.sampling; known: model, loss, train"),
        ("anchor", 3, "anchor is 3; expected the sections model, diffusion, loss, sampling, train"),
        ("magic", 3, "unknown setting or component magic; known components: autoencoder, normals, anchor"),
        ("size", 100, "size is 100; expected a multiple of 16"),
        ("size", 0, "size is 0"),
        ("layout.num_anchors", 5, "num_views is 32; expected a multiple of num_anchors, 5"),
        ("layout", {"num_anchors": 1}, "num_anchors is 1; windows cover the ring only if it is even"),
        ("reconstruction.resolution", 4, "resolution is 4; expected at least 8 and at most 1024"),
        ("reconstruction.fit.steps", 15, r"steps is 15; expected .*multiple of steps_per_chunk"),
        ("reconstruction.fit.steps_per_chunk", 0, "steps_per_chunk is 0"),
        ("reconstruction.fit.rays", 0, "rays is 0; expected at least 1"),
        ("reconstruction.fit.color_weight", float("inf"), "color_weight is inf"),
        ("reconstruction.fit.magic", 1, "unknown setting reconstruction.fit.magic; known: "),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(path, value, said):
    with pytest.raises(ValueError, match=said):
        stages.parse_config(changed(path, value))


def test_a_prediction_that_is_undefined_at_pure_noise_is_refused():
    with pytest.raises(
        ValueError, match=r"anchor\.diffusion\.prediction is 'epsilon'; expected 'v' with zero_terminal"
    ):
        stages.parse_config(changed("anchor.diffusion.prediction", "epsilon"))


def test_settings_from_json_are_hashable():
    values = json.loads(json.dumps(changed("reconstruction.fit.levels", [8, 16])))
    fit = stages.parse_config(values).system.reconstruction.fit
    assert hash(fit) and fit.levels == (8, 16)


def test_a_config_comes_back_from_json():
    config = tiny.system()
    assert stages.parse_config(json.loads(json.dumps(config.to_dict()))) == config


def test_components_may_be_missing():
    config = stages.parse_config(without("interpolation"))
    assert "interpolation" not in config and "anchor" in config


def test_a_missing_component_is_named_with_those_that_there_are():
    config = stages.parse_config(without("interpolation", "anchor"))
    with pytest.raises(ValueError, match="the config has no section 'anchor'; it describes autoencoder, normals"):
        config["anchor"]


@pytest.mark.parametrize("missing", ["autoencoder", "normals"])
def test_what_a_stage_needs_is_named(missing):
    with pytest.raises(ValueError, match=f"the config has no section '{missing}', which the anchor needs"):
        stages.parse_config(without(missing, "interpolation"))


def test_a_component_without_training_settings_is_not_trained():
    values = tiny.system_values()
    del values["normals"]["train"]
    assert stages.parse_config(values)["normals"].train is None


def test_a_section_that_is_left_out_has_its_defaults():
    values = tiny.system_values()
    del values["normals"]["loss"]
    assert stages.parse_config(values)["normals"].loss.color_jitter == 0.15


@pytest.fixture(scope="module")
def own():
    """A config whose interpolation has an autoencoder of its own, of half the resolution of latents."""
    values = tiny.system_values()
    shared = values["autoencoder"]["model"]["kl"]
    autoencoder = shared | {"block_out_channels": (4, 4, 4), "latent_channels": 3}
    values["interpolation_autoencoder"] = {"model": {"kl": autoencoder}}
    values["interpolation"]["model"]["unet"] |= {"in_channels": 6, "out_channels": 3}
    return stages.parse_config(values)


def test_a_stage_prefers_an_autoencoder_of_its_own(own):
    assert own.provider("interpolation", "autoencoder") == "interpolation_autoencoder"


def test_other_stages_share_the_autoencoder(own):
    assert own.provider("anchor", "autoencoder") == "autoencoder"


def test_latents_have_the_size_of_the_autoencoder_of_their_stage(own):
    assert [own.latent_size(stage) for stage in ("anchor", "interpolation")] == [64, 32]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("layout.radius", 1.3),
        ("anchor.sampling.num_steps", 7),
        ("anchor.loss.cond_dropout", 0.5),
        ("normals.train.steps", 7),
        ("reconstruction.resolution", 16),
        ("seed", 7),
    ],
)
def test_weights_fit_systems_that_differ_in(path, value):
    assert identities(path, value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("layout.elevation", 10.0),
        ("layout.num_views", 16),
        ("anchor.model.injection", False),
        ("anchor.diffusion", {"prediction": "v", "zero_terminal_snr": False}),
        ("normals.model.unet.norm_groups", 4),
        ("size", 64),
    ],
)
def test_weights_do_not_fit_systems_that_differ_in(path, value):
    assert not identities(path, value)


def test_settings_that_change_no_result_may_change_when_a_run_resumes():
    names = config_lib.resumable(config_lib.TrainSettings)
    assert {"remat", "loader_workers", "log_every", "checkpoint_every"} <= names
    assert not names & {"steps", "batch_size", "learning_rate", "optimizer", "ema_decay"}


def test_every_setting_is_explained():
    rows = list(settings.described(config_lib.SystemSettings))
    rows += settings.described(config_lib.TrainSettings)
    for stage in stages.STAGES.values():
        for part in (stage.model, stage.diffusion, stage.loss_settings, stage.sampling):
            rows += [] if part is None else settings.described(part)
    assert not [name for name, _, _, meaning in rows if not meaning.endswith((".", "…"))]


def test_settings_of_networks_that_are_not_chosen_are_not_part_of_the_identity():
    assert stages.parse_config(changed("normals.model.dpt_hybrid.image_size", 512)).identity() == presets_identity()


def test_the_chosen_network_is_part_of_the_identity():
    other = stages.parse_config(changed("normals.model.architecture", "dpt_hybrid")).identity()
    assert other["normals.model.architecture"] != presets_identity()["normals.model.architecture"]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("mesh.data", 0, "mesh.data is 0; expected a number of devices"),
        ("anchor.train.lr_multipliers", {"class_embedding": -1.0}, "lr_multipliers is .*; expected at least 0"),
        ("layout.elevation", 20.0, "normals.model.architecture is 'dpt_hybrid', which takes the input's camera to be"),
    ],
)
def test_settings_of_the_full_size_system_that_cannot_be_are_refused(path, value, said):
    values = presets.load("envision3d:smoke").to_dict()
    *parents, last = path.split(".")
    part = values
    for name in parents:
        part = part[name]
    part[last] = value
    with pytest.raises(ValueError, match=said):
        stages.parse_config(values)
