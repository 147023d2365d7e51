"""Commands in the documentation have the flags that they are given, and run where that is quick."""

import os
import pathlib
import re
import shlex
import subprocess

import pytest
import trimesh

from e3d_jax import cli
from e3d_jax.cli import flags
from e3d_jax.data import loader, manifest, records

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Values of variables of the shell, where the text of a variable would not do.
VALUES = {"stage": "anchor", "SLURM_ARRAY_TASK_ID": "0"}


def commands(page):
    """Yield the arguments of each e3d command in a page's blocks of bash; not those that only show a pattern."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if (found := re.search(r"(?:^|[\s&'])e3d (.*)", line)) and not re.search(r"\[--|\[IMAGE|\.\.\.", found[1]):
                text = re.split(r" > | \|\| |; done", found[1])[0].strip()
                if text.count('"') % 2:  # The command is part of another one's argument.
                    text = text.rstrip('"')
                text = re.sub(r"\\?\$\{?(\w+)\}?", lambda match: VALUES.get(match[1], match[1]), text)
                yield shlex.split(text, comments=True)


COMMANDS = [(page.name, arguments) for page in PAGES for arguments in commands(page)]


def test_commands_are_found():
    assert len(COMMANDS) > 40 and {"README.md", "scale.md", "training.md", "tpu.md"} <= {name for name, _ in COMMANDS}


@pytest.mark.parametrize(("page", "arguments"), COMMANDS)
def test_a_command_of_the_documentation_has_known_flags(page, arguments):
    name = next(name for words in (2, 1) if (name := " ".join(arguments[:words])) in cli.COMMANDS)
    if name == "infer":  # Its settings are those of the weights, which the reader has.
        arguments = [argument for argument in arguments if not argument.startswith("--weights=")]
    module, given = cli.command(name), flags.Flags(arguments[len(name.split()) :])
    if (config := given.given("config")) and config.endswith(".py"):
        pytest.skip("a file of the reader")
    module.define(given)
    given.parse()


@pytest.mark.parametrize(("status", "restarts", "requeued"), [(0, None, False), (1, None, True), (1, 10, False)])
def test_the_slurm_script_of_the_guide_requeues_ten_crashes(status, restarts, requeued, tmp_path):
    (script,) = re.findall(r"```bash\n(srun .*?)```", (ROOT / "docs" / "scale.md").read_text(), re.DOTALL)
    for name, command in (("srun", f"exit {status}"), ("scontrol", f'echo "$@" > {tmp_path}/requeued')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{command}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    subprocess.run(["bash", "-c", script], env=variables | ({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}))
    assert (tmp_path / "requeued").exists() == requeued
    assert not requeued or (tmp_path / "requeued").read_text() == "requeue 7\n"


@pytest.mark.slow
def test_data_is_made_by_the_commands_of_the_guide(tmp_path, bucket, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy = ["--config=mini:smoke", "--objects=2", "--size=32", "--views=8", "--workers=1"]
    made = []
    for arguments in commands(ROOT / "docs" / "scale.md"):
        if arguments[:2] == ["data", "synthetic"]:
            if "--engine=beam" in arguments:
                pytest.importorskip("apache_beam")
            out = next(argument for argument in arguments if argument.startswith("--out="))
            folder = bucket if "://" in out else str(tmp_path / str(len(made)))
            cli.main([*arguments, *toy, f"--out={folder}"])
            assert len(loader.open_shards(records.find_shards(folder))) == 2
            made.append(sorted(shard["sha256"] for shard in manifest.read(folder)["shards"].values()))
    assert len(made) == 3 and made[0] == made[1] == made[2]


@pytest.mark.slow
def test_meshes_are_drawn_by_the_command_of_the_guide(tmp_path):
    (tmp_path / "meshes").mkdir()
    trimesh.creation.box().export(tmp_path / "meshes" / "box.glb")
    (given,) = (arguments for arguments in commands(ROOT / "docs" / "scale.md") if arguments[:2] == ["data", "assets"])
    toy = ["--config=mini:smoke", "--size=32", "--views=8", "--workers=1"]
    cli.main([*given, *toy, f"--meshes={tmp_path}/meshes", f"--out={tmp_path}/records"])
    assert len(loader.open_shards(records.find_shards(tmp_path / "records"))) == 1
