"""Whether a run that is killed again and again ends in the weights of one that is not.

    python benchmarks/kills.py --data=RECORDS --out=DIR [--kills=20] [--seed=0]

Trains a small normal estimator on records of 32 px, saving and evaluating at almost every step: once undisturbed, and
once under ``e3d train --restart``, whose child gets SIGKILL at random times, a quarter of them as it starts.
Prints what the run was doing when it was killed, its goodput, and whether all weights are equal, bit for bit.
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
    rng, doing = np.random.default_rng(seed), collections.Counter[str]()
    parent = subprocess.Popen(command(data, workdir, steps, f"--restart={kills + 5}"))
    try:
        child = 0
        for _ in range(kills):
            child = _next_child(parent, child)
            early, step = rng.random() < 0.25, goodput.last_step(workdir / STAGE) + rng.integers(1, 4)
            while not early and parent.poll() is None and goodput.last_step(workdir / STAGE) < step:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 3.0 if early else 0.5))
            if parent.poll() is not None:
                raise ValueError(f"the run ended after {sum(doing.values())} kills; give it more steps")
            unfinished = list((workdir / STAGE / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
            doing["starting" if early else "saving" if unfinished else "computing or evaluating"] += 1
            os.kill(child, signal.SIGKILL)
        if status := parent.wait():
            raise ValueError(f"the run ended with status {status}")
    finally:
        parent.terminate()
        parent.wait()
    return doing


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
