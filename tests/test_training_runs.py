"""What cannot be trained is refused at once, before there are devices, modules or files."""

import json

import pytest

from e3d_jax import cameras, settings
from e3d_jax import config as config_lib
from e3d_jax.training import runs
from tests import toy


@pytest.fixture(autouse=True)
def _stages(monkeypatch):
    toy.register(monkeypatch)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Records of the toy stages."""
    return str(toy.write_records(tmp_path_factory.mktemp("records")))


@pytest.fixture
def check(tmp_path, dataset):
    """Check a run of the toy stage in a folder of its own."""

    def check_run(config, stage="toy", datasets=None, init=None, workdir=str(tmp_path), **rest):
        return runs.check_run(config, stage, workdir, datasets or {dataset: 1.0}, init, **rest)

    return check_run


def _begin(run):
    """Tie a folder to a run, as its first step does."""
    run.create_folder()
    run.write_identity()


def test_nothing_is_written_by_checking(check, tmp_path):
    check(toy.config())
    assert not list(tmp_path.iterdir())


def test_a_work_folder_of_another_config_is_refused(check):
    _begin(check(toy.config()))
    with pytest.raises(ValueError, match=r"another config: toy\.train\.learning_rate is 0\.1 there and 1\.0"):
        check(toy.config(learning_rate=1.0))


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"train": 3}'])
def test_a_damaged_tie_to_a_config_does_not_stop_a_run(check, tmp_path, damage):
    _begin(check(toy.config()))
    (tmp_path / "toy" / "config.json").write_text(damage)
    with pytest.warns(UserWarning, match=r"config\.json cannot be read .*; the run continues"):
        check(toy.config())


def test_a_work_folder_of_another_seed_is_refused(check):
    _begin(check(toy.config()))
    with pytest.raises(ValueError, match="another config: seed is 0 there and 9"):
        check(toy.config(system={"seed": 9}))


def test_a_work_folder_of_another_layout_is_refused(check):
    _begin(check(toy.config()))
    with pytest.raises(ValueError, match=r"another config: layout\.elevation is 0\.0 there and 20\.0"):
        check(toy.config(system={"layout": cameras.ViewLayout(elevation=20.0)}))


def test_a_setting_that_is_newer_than_the_run_has_its_default(check, tmp_path):
    _begin(check(toy.config()))
    path = tmp_path / "toy" / "config.json"
    stored = json.loads(path.read_text())
    del stored["toy"]["train"]["weight_decay"]
    path.write_text(json.dumps(stored))
    check(toy.config())


def test_weights_of_other_views_are_refused_before_training(check, tmp_path):
    other = toy.config(system={"layout": cameras.ViewLayout(elevation=20.0)})
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text(json.dumps(other.to_dict()))
    with pytest.raises(ValueError, match=r"holds weights of other views: layout\.elevation is 20\.0 there and 0\.0"):
        check(toy.config())


@pytest.mark.parametrize(
    "changes",
    [{"log_every": 7}, {"remat": "full"}, {"loader_workers": 3}, {"max_consecutive_skips": 2}, {"max_bad_records": 2}],
)
def test_settings_that_change_no_result_may_change(check, changes):
    _begin(check(toy.config()))
    check(toy.config(**changes))


def test_another_mesh_may_continue(check):
    _begin(check(toy.config()))
    check(toy.config(system={"mesh": {"data": 1, "fsdp": 2, "tensor": 2}}))


def test_a_run_may_become_longer_if_its_learning_rate_is_constant(check):
    _begin(check(toy.config(lr_schedule="constant", steps=2)))
    check(toy.config(lr_schedule="constant", steps=4))


def test_a_run_may_not_become_longer_if_its_learning_rate_depends_on_that(check):
    _begin(check(toy.config(steps=2)))
    with pytest.raises(ValueError, match="steps is 2 there and 4"):
        check(toy.config(steps=4))


def test_the_folder_of_a_run_says_what_its_results_depend_on(check, tmp_path):
    _begin(check(toy.config()))
    identity = json.loads((tmp_path / "toy" / "config.json").read_text())
    assert identity["toy"]["train"]["batch_size"] == 4 and identity["toy"]["model"]["linear"]["features"] == 4
    assert "log_every" not in identity["toy"]["train"]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("grad_accum_steps", 0, "at least 1"),
        ("log_every", 0, "at least 1"),
        ("steps", 0, "at least 1"),
        ("learning_rate", float("nan"), "finite and at least 0"),
        ("remat", "most", "one of none, full, dots"),
        ("lr_schedule", "slow", "one of cosine, constant"),
        ("optimizer", "sgd", "one of adamw, muon"),
    ],
)
def test_settings_that_cannot_be_trained_with_are_refused(name, value, expected):
    with pytest.raises(ValueError, match=rf"toy\.train\.{name} is {value!r}; expected {expected}"):
        settings.parse(config_lib.TrainSettings, {"steps": 4, name: value}, "toy.train")


@pytest.mark.parametrize("profile", [(0, 1), (3, 2), (4, 5)])
def test_steps_that_are_not_taken_cannot_be_traced(check, profile):
    with pytest.raises(ValueError, match="expected some of 1 to 4"):
        check(toy.config(), profile=profile)


def test_a_stage_that_the_config_does_not_train_is_refused(check):
    config = toy.config()
    untrained = config_lib.ComponentConfig(config["toy"].model)
    with pytest.raises(ValueError, match=r"no section toy\.train"):
        check(config_lib.SystemConfig(config.system, {"toy": untrained}))


def test_a_run_itself_is_in_a_local_folder(check):
    with pytest.raises(ValueError, match=r"gs://bucket/run is not a local folder"):
        check(toy.config(), workdir="gs://bucket/run")
    check(toy.config(), checkpoints="gs://bucket/run")


def test_a_stage_names_what_must_be_trained_first(check):
    with pytest.raises(FileNotFoundError, match="no weights at "):
        check(toy.config(), "user")


def test_cached_latents_do_without_what_the_finished_system_needs(check, tmp_path):
    latents = {str(toy.write_records(tmp_path / "latents", kind="latents")): 1.0}
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text(json.dumps(toy.config().to_dict()))
    run = check(toy.config(), "user", latents)
    assert (run.kind, run.components, run.uses_components) == ("latents", {}, False)


def test_settings_must_fit_the_kind_of_the_records(check, tmp_path):
    latents = str(toy.write_records(tmp_path / "latents", kind="latents"))
    with pytest.raises(ValueError, match="trains its inner layer, which latents hold already"):
        check(toy.config(), datasets={latents: 1.0})


def test_settings_must_fit_the_kind_of_the_held_out_records(check, tmp_path):
    latents = str(toy.write_records(tmp_path / "latents", kind="latents"))
    with pytest.raises(ValueError, match="trains its inner layer, which latents hold already"):
        check(toy.config(), heldout=latents)


def test_datasets_must_fit_the_config(check, dataset):
    with pytest.raises(ValueError, match=rf"{dataset}: holds images of 32 px, but the config wants 64 px"):
        check(toy.config(system={"size": 64}))


def test_what_is_not_trained_must_come_from_somewhere(check):
    with pytest.raises(ValueError, match=r"does not train its inner; give weights that have it with --init"):
        check(toy.config(freeze=["inner"]))
