"""Whether a run that is killed again and again ends in the weights of one that is not.

    python benchmarks/kills.py --data=RECORDS --out=DIR [--kills=20] [--seed=0]

Trains a small normal estimator on records of 32 px, saving and evaluating at almost every step: once undisturbed, and
once under ``e3d train --restart``, whose child gets SIGKILL at random times: as it starts, while it evaluates held-out
objects, and at any time. Prints what the run was doing when it was killed, its goodput, and whether all weights are
equal, bit for bit.
"""

import collections
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
from absl import app, flags

from e3d_jax.training import goodput
from e3d_jax.weights import folder

STAGE = "normals"
# When the run is killed, with probabilities, and the most seconds that pass then.
MOMENTS = {"starting": 0.2, "evaluating": 0.4, "any": 0.4}
WAITS = {"starting": 3.0, "evaluating": 0.1, "any": 0.5}
SETTINGS = {"batch_size": 4, "loader_workers": 0, "checkpoint_every": 1, "evaluate_every": 3, "log_every": 1}

DATA = flags.DEFINE_string("data", None, "Folder of records of 32 px.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder of both runs.", required=True)
KILLS = flags.DEFINE_integer("kills", 20, "How often the run is killed.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the times.")


def command(data: str, workdir: pathlib.Path, steps: int, *more: str) -> list[str]:
    """Return the command of a run."""
    train = [f"--config.{STAGE}.train.{name}={value}" for name, value in (SETTINGS | {"steps": steps}).items()]
    paths = [f"--data={data}", f"--heldout={data}", f"--workdir={workdir}"]
    system = ["--config=mini:smoke", "--config.size=32", f"--stage={STAGE}"]
    return [sys.executable, "-m", "e3d_jax", "train", *system, *paths, *train, *more]


def kill_again_and_again(data: str, workdir: pathlib.Path, steps: int, kills: int, seed: int) -> collections.Counter:
    """Train a run that is killed; return how often it was, by what it was doing."""
    rng, doing, run = np.random.default_rng(seed), collections.Counter[str](), workdir / STAGE
    parent = subprocess.Popen(command(data, workdir, steps, f"--restart={kills + 5}"))
    try:
        child = 0
        for _ in range(kills):
            child = _next_child(parent, child)
            moment, step = rng.choice(list(MOMENTS), p=list(MOMENTS.values())), goodput.last_step(run)
            if moment != "starting":
                step += rng.integers(1, 4)
            while goodput.last_step(run) < step or (moment == "evaluating" and not _is_evaluating(run)):
                if parent.poll() is not None:
                    raise ValueError(f"the run ended after {doing.total()} kills; give it more steps")
                time.sleep(0.005)
            time.sleep(rng.uniform(0, WAITS[moment]))
            os.kill(child, signal.SIGSTOP)  # It is still doing what is counted when it is killed.
            doing["starting" if moment == "starting" else _doing(run)] += 1
            os.kill(child, signal.SIGKILL)
        if status := parent.wait():
            raise ValueError(f"the run ended with status {status}")
    finally:
        parent.terminate()
        parent.wait()
    return doing


def _doing(run: pathlib.Path) -> str:
    """Return what a run that takes steps is doing."""
    if _is_evaluating(run):
        return "evaluating"
    return "saving" if list((run / "checkpoints").glob("*.orbax-checkpoint-tmp*")) else "computing"


def _is_evaluating(run: pathlib.Path) -> bool:
    """Return whether a run has written the row of a step to evaluate, but not its scores."""
    rows = (run / "metrics.jsonl").read_bytes().split(b"\n")[:-1]  # The last line may be unfinished.
    row = json.loads(rows[-1]) if rows else {"step": 0}
    return "loss" in row and row["step"] % SETTINGS["evaluate_every"] == 0


def _next_child(parent: subprocess.Popen, last: int) -> int:
    """Return the process that trains, once it is another one than the last."""
    children = pathlib.Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    while parent.poll() is None:
        if (found := children.read_text().split()) and int(found[0]) != last:
            return int(found[0])
        time.sleep(0.01)
    raise ValueError("the run ended early; give it more steps")


def differing(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """Return the names of the weights that differ between two runs."""
    first, second = (folder.read(path / "weights", STAGE) for path in (one, other))
    return [
        name for name in first.keys() | second.keys() if not np.array_equal(first[name].read(), second[name].read())
    ]


def main(_: list[str]) -> None:
    """Train both runs and compare them."""
    whole, hurt, steps = pathlib.Path(OUT.value, "whole"), pathlib.Path(OUT.value, "hurt"), 4 * KILLS.value
    subprocess.run(command(DATA.value, whole, steps), check=True)
    doing = kill_again_and_again(DATA.value, hurt, steps, KILLS.value, SEED.value)
    print(json.dumps({"killed": doing, "differing weights": differing(whole, hurt)}))
    print(json.dumps(goodput.summary(goodput.read(hurt / STAGE)), indent=1))


if __name__ == "__main__":
    app.run(main)
