"""Whether the local engine and Apache Beam make the same records at the same cost.

    python benchmarks/engines.py --out=DIR [--objects=10000] [--size=32] [--turns=4] [--workers=2]
    python benchmarks/engines.py --out=DIR --meshes=DIR [...]

Draws the anchors of synthetic objects, or of all meshes below a folder, with both engines into ``DIR/local`` and
``DIR/beam``. They take turns, each doing ``--shard=I/TURNS``, so that what else the machine does affects both alike.
Prints the CPU seconds of each turn and how many records differ, and writes them to ``DIR/engines.json``; fails if any
do. Starting Python, loading Beam, and compiling count in every turn, as in any command.
"""

import json
import pathlib
import resource
import subprocess
import sys

from absl import app, flags

from e3d_jax.data import loader, records

ENGINES = ("local", "beam")

OUT = flags.DEFINE_string("out", None, "Folder of both datasets and the numbers.", required=True)
MESHES = flags.DEFINE_string("meshes", None, "Folder of meshes; synthetic objects when not given.")
OBJECTS = flags.DEFINE_integer("objects", 10_000, "Number of synthetic objects.", lower_bound=1)
SIZE = flags.DEFINE_integer("size", 32, "Width and height of the views in pixels.", lower_bound=16)
TURNS = flags.DEFINE_integer("turns", 4, "Turns of each engine.", lower_bound=1)
WORKERS = flags.DEFINE_integer("workers", 2, "Worker processes.", lower_bound=1)


def cpu_seconds(command: list[str]) -> float:
    """Run a command; return the CPU seconds of its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def command(engine: str, turn: int) -> list[str]:
    """Return the command of a turn."""
    what = ["assets", f"--meshes={MESHES.value}"] if MESHES.value else ["synthetic", f"--objects={OBJECTS.value}"]
    drawn = ["--config=mini:smoke", "--views=8", f"--size={SIZE.value}", f"--workers={WORKERS.value}"]
    place = [f"--out={folder(engine)}", f"--shard={turn}/{TURNS.value}", f"--engine={engine}"]
    return [sys.executable, "-m", "e3d_jax", "data", *what, *drawn, *place]


def folder(engine: str) -> pathlib.Path:
    """Return the folder of an engine's dataset."""
    return pathlib.Path(OUT.value, engine)


def main(_: list[str]) -> None:
    """Make both datasets and compare them."""
    seconds: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for turn in range(TURNS.value):
        for engine in ENGINES if turn % 2 == 0 else reversed(ENGINES):
            seconds[engine].append(round(cpu_seconds(command(engine, turn)), 1))
    local, beam = (loader.open_shards(records.find_shards(folder(engine))) for engine in ENGINES)
    if len(local) != len(beam):
        raise ValueError(f"the local engine made {len(local)} records, and Beam {len(beam)}")
    differing = sum(local[index] != beam[index] for index in range(len(local)))
    cost = {engine: sum(seconds[engine]) for engine in ENGINES}
    numbers = {
        "records": len(local),
        "differing": differing,
        "cpu_seconds": seconds,
        "records_per_cpu_second": {engine: round(len(local) / cost[engine], 2) for engine in ENGINES},
        "throughput_ratio": round(cost["local"] / cost["beam"], 3),
    }
    text = json.dumps(numbers, indent=1)
    pathlib.Path(OUT.value, "engines.json").write_text(text)
    print(text)
    if differing:
        raise ValueError(f"{differing} of {len(local)} records differ")


if __name__ == "__main__":
    app.run(main)
