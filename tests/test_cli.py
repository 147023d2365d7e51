"""The command line: its dialect, and how it ends."""

import os
import pathlib
import subprocess
import sys
import types

import pytest

from e3d_jax import cli, files, stages
from e3d_jax.cli import flags
from e3d_jax.training import restarts


def run(*argv):
    cli.main(list(argv))


def refusal(*argv):
    """The sentence that a command ends with."""
    with pytest.raises(SystemExit) as ended:
        run(*argv)
    return str(ended.value)


def test_without_a_command_all_are_listed(capsys):
    run()
    printed = capsys.readouterr().out
    assert all(f"\n  {command} " in printed for command in cli.COMMANDS)


def test_an_unknown_command_is_named_beside_those_there_are():
    assert refusal("tran").startswith("e3d: unknown command 'tran'")
    assert "\n  train " in refusal("tran")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself(command, capsys):
    run(*command.split(), "--help")
    printed = capsys.readouterr().out
    assert printed.startswith(f"e3d {command}: ") and f"e3d {command} " in printed.partition("\n\n")[2]


def test_the_settings_of_a_config_are_explained(capsys):
    run("train", "--help")
    assert "anchor.train.ema_decay: EMA decay. The EMA weights are the ones exported." in capsys.readouterr().out


def test_an_unknown_flag_is_named():
    assert refusal("eval", "--predd=a").startswith("e3d eval: Unknown command line flag 'predd'")


def test_a_missing_flag_is_named():
    assert refusal("train", "--stage=anchor") == "e3d train: --workdir is missing; give --workdir=VALUE"


def test_an_argument_that_is_not_a_flag_is_refused():
    given = ("--config=mini:smoke", "--stage=anchor", "--workdir=out", "runs")
    assert "unexpected argument 'runs'" in refusal("train", *given)


def test_an_unknown_setting_is_named_beside_those_there_are():
    given = ("--stage=anchor", "--workdir=out", "--config.anchor.sampling.magic=3")
    said = "e3d train: unknown setting anchor.sampling.magic; known: guidance, num_steps, sampler"
    assert refusal("train", *given) == said


def test_a_value_out_of_range_is_named():
    given = ("--stage=anchor", "--workdir=out", "--config.anchor.train.ema_decay=2.0")
    assert refusal("train", *given) == "e3d train: anchor.train.ema_decay is 2.0; expected at least 0 and below 1"


def test_an_unknown_preset_is_named():
    assert "no config maxi; give one of mini, base, envision3d" in refusal("train", "--config=maxi", "--stage=anchor")


def test_an_unknown_variant_is_named():
    assert "mini has no variant 'smok'; there is smoke" in refusal("train", "--config=mini:smok", "--stage=anchor")


def test_an_unknown_stage_is_named():
    sentence = refusal("train", "--stage=anchors", "--workdir=out")
    assert "no section 'anchors'" in sentence and all(stage in sentence for stage in stages.STAGES)


def test_values_of_settings_reach_the_command(monkeypatch, tmp_path):
    from e3d_jax.training import loop

    seen = []
    monkeypatch.setattr(loop, "train", lambda config, *_, **__: seen.append(config))
    given = ("--config=mini:smoke", "--stage=anchor", f"--workdir={tmp_path}")
    run("train", *given, "--config.anchor.train.freeze=('image_encoder',)", "--config.anchor.sampling.num_steps=3")
    assert seen[0]["anchor"].train.freeze == ("image_encoder",)
    assert seen[0]["anchor"].sampling.num_steps == 3


def test_a_config_file_works_like_a_preset(monkeypatch, tmp_path):
    from e3d_jax.training import loop

    seen = []
    monkeypatch.setattr(loop, "train", lambda config, *_, **__: seen.append(config))
    own = tmp_path / "own.py"
    own.write_text("from e3d_jax.presets import mini\n\ndef get_config():\n    return mini.get_config('smoke')\n")
    run("train", f"--config={own}", "--stage=anchor", f"--workdir={tmp_path}")
    assert seen[0]["anchor"].train.steps == 4


def test_records_need_the_views_of_the_layout_or_its_anchors():
    sentence = refusal("data", "assets", "--meshes=meshes", "--out=out", "--views=16")
    assert "--views is 16; records hold the 32 views of the layout, or its 8 anchors" in sentence


def test_a_profile_of_other_than_two_steps_is_refused():
    given = ("--config=mini:smoke", "--stage=anchor", "--workdir=out", "--profile=3")
    assert "--profile is '3'; expected two steps, as in 10,12" in refusal("train", *given)


def test_a_run_folder_in_a_bucket_is_fetched_and_sent(bucket, monkeypatch):
    from e3d_jax.training import loop

    files.write_atomically(f"{bucket}/run/weights/config.json", b"old")
    files.write_atomically(f"{bucket}/run/anchor/checkpoints/1", b"not fetched")
    seen = {}

    def train(config, stage, workdir, datasets, init, **more):
        folder = pathlib.Path(workdir)
        assert [path.name for path in folder.rglob("*") if path.is_file()] == ["config.json"]
        (folder / "weights" / "config.json").write_bytes(b"new")
        seen.update(more, datasets=datasets)

    monkeypatch.setattr(loop, "train", train)
    run("train", "--config=mini:smoke", "--stage=anchor", f"--workdir={bucket}/run")
    assert files.read(f"{bucket}/run/weights/config.json") == b"new"
    assert seen["checkpoints"] == f"{bucket}/run/anchor/checkpoints"
    assert seen["datasets"] == {f"{bucket}/run/records": 1.0}


def test_a_restarted_run_has_the_same_flags_but_that_of_restarts(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(restarts, "supervise", lambda command, limit, last_step: seen.append((command, limit)) or 0)
    same = ["--config=mini:smoke", "--stage=anchor", f"--workdir={tmp_path}", "--config.seed=3"]
    run("train", "--restart=7", *same)
    assert seen == [([sys.executable, "-m", "e3d_jax", "train", *same], 7)]


@pytest.mark.parametrize(("status", "code"), [(3, 3), (-9, 137)])
def test_a_run_that_is_given_up_ends_with_the_status_of_its_last_start(monkeypatch, tmp_path, status, code):
    monkeypatch.setattr(restarts, "supervise", lambda *_: status)
    with pytest.raises(SystemExit) as ended:
        run("train", "--restart=7", "--config=mini:smoke", "--stage=anchor", f"--workdir={tmp_path}")
    assert ended.value.code == code


def test_urls_of_sources_and_targets_become_local_paths(bucket):
    files.write_atomically(f"{bucket}/in/a", b"1")
    given = flags.Flags([f"--from={bucket}/in", f"--to={bucket}/out"])
    given.source("from", None, "A source.")
    given.target("to", "A target.")
    given.parse()
    with given.local_copies():
        pathlib.Path(given.to, "b").write_bytes(pathlib.Path(getattr(given, "from"), "a").read_bytes())
    assert files.read(f"{bucket}/out/b") == b"1"


def test_options_of_beam_follow_two_dashes(monkeypatch, tmp_path):
    given = ("data", "synthetic", f"--out={tmp_path}", "--objects=1", "--", "--runner=DataflowRunner")
    assert "unexpected argument '--runner=DataflowRunner'" in refusal(*given)
    seen = []
    beam = types.SimpleNamespace(Runner=seen.append)
    monkeypatch.setitem(sys.modules, "e3d_jax.data.beam", beam)
    monkeypatch.setattr("e3d_jax.data.beam", beam, raising=False)  # If it is imported already.
    monkeypatch.setattr("e3d_jax.data.synthetic.jobs.write_records", lambda *_, **__: None)
    run(*given[:4], "--engine=beam", *given[4:])
    assert seen == [["--runner=DataflowRunner"]]


def test_a_flag_without_an_equals_sign_is_refused():
    sentence = refusal("infer", "a.png", "--out=out", "--weights", "folder")
    assert sentence == "e3d infer: --weights has no value; flags are given as --weights=VALUE"


def test_one_dash_is_as_good_as_two():
    assert "mini has no variant 'smok'" in refusal("train", "-config=mini:smok", "--stage=anchor")


def test_dashes_within_names_of_flags_are_underscores():
    assert refusal("fit", "--texture-size=x") == "e3d fit: --texture_size is 'x'; expected an integer"


def test_the_environment_of_training_is_prepared_before_numpy_is_imported():
    code = "import os, sys; from e3d_jax import cli; cli.importlib.import_module = lambda name: sys.exit('numpy' in "
    code += "sys.modules and 'early'); cli.main(['train'])"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0
