"""Compare the diffusion networks with diffusers' in PyTorch on this device: same sizes, random weights, in turns.

    python benchmarks/diffusion.py [--config=configs/envision3d.py] [--cases=anchor,...] [--rivals=ours,compiled,eager]

Needs the ``parity`` extra. For each case all rivals run at once, each in its own process, and take turns, so that none
has the cooler chip; ``--apart`` runs one after another, for cases that do not fit into memory together. Accelerators
compute in bfloat16, CPUs in float32. The table has medians; the ratio is that of the fastest rival's time to ours.
``operations`` are FLOPs as counted by each framework: ours excludes attention to a single token, whose result is known.
The percentage is relative to the rate of a large matrix product, measured here. The last line adds up the time for the
views of one object with the config's sampling steps.
"""

import json
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
from absl import app, flags

RIVALS = pathlib.Path(__file__).parent / "rivals"
sys.path.insert(0, str(RIVALS))
import serving  # noqa: E402

CASES = flags.DEFINE_list("cases", list(serving.CASES), f"Cases: {', '.join(serving.CASES)}.")
NAMES = flags.DEFINE_list("rivals", ["ours", "compiled", "eager"], "Rivals to compare.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each rival.", lower_bound=1)
TIMES = flags.DEFINE_integer("times", 10, "Runs per turn.", lower_bound=1)
APART = flags.DEFINE_bool("apart", False, "Run one rival after another.")
OUT = flags.DEFINE_string("out", None, "JSON file for the results.")
COUNTS = ("objects", "train_objects", "train_windows")


class Rival:
    """A process that has prepared a case."""

    def __init__(self, name: str, case: str):
        script = "ours.py" if name == "ours" else "theirs.py"
        given = [a for a in sys.argv[1:] if a.lstrip("-").split("=")[0].split(".")[0] == "config"]
        given += [f"--{count}={flags.FLAGS[count].value}" for count in COUNTS]
        options = ["--compile"] if name == "compiled" else []
        command = [sys.executable, str(RIVALS / script), f"--case={case}", *given, *options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts, self.seconds = self._read(), []  # one per turn

    def run(self) -> None:
        """Run one turn."""
        assert self._process.stdin
        print(TIMES.value, file=self._process.stdin, flush=True)
        found = self._read()
        self.seconds.append(found.pop("seconds"))
        self.facts |= found

    def close(self) -> dict[str, Any]:
        """End the process and return its results."""
        self._process.communicate()
        return {**self.facts, "seconds": float(np.median(self.seconds)), "spread": float(np.ptp(self.seconds))}

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(map(str, self._process.args))} ended with {self._process.wait()}")
        return json.loads(line)


def compete(case: str) -> dict[str, dict[str, Any]]:
    """Return results by rival."""
    found: dict[str, dict[str, Any]] = {}
    for names in [[name] for name in NAMES.value] if APART.value else [NAMES.value]:
        rivals = {}
        for name in names:
            try:
                rivals[name] = Rival(name, case)
            except RuntimeError as error:  # Mostly out of memory; the others go on.
                print(f"{case}: {error}", file=sys.stderr)
        for _ in range(ROUNDS.value):
            for rival in rivals.values():
                rival.run()
        found |= {name: rival.close() for name, rival in rivals.items()}
    return found


def rows(case: str, found: dict[str, dict[str, Any]], rate: float) -> list[str]:
    """Return lines of the table."""
    others = [one["seconds"] for name, one in found.items() if name != "ours"]
    lines = []
    for name, one in found.items():
        operations = one["operations"] or found.get("eager", one)["operations"] or 0.0
        ratio = f"{min(others) / one['seconds']:.2f}" if name == "ours" and others else ""
        memory = f"{one['memory'] / 1e9:.2f}" if "memory" in one else ""
        speed = operations / one["seconds"]
        lines.append(
            f"{case:20s} {name:9s} {1e3 * one['seconds']:10.2f} ms {ratio:>6s} {operations / 1e12:9.3f} T "
            f"{speed / 1e12:8.1f} T/s {speed / rate:6.1%} {memory:>8s} GB {one['compile_seconds']:7.1f} s"
        )
    return lines


def views_of_an_object(config, results: dict[str, dict[str, dict[str, Any]]]) -> dict[str, float]:
    """Return seconds of both stages by rival, if all their parts were timed."""
    counts = {"anchor": config.anchor.sampling.num_steps, "interpolation": config.interpolation.sampling.num_steps}
    counts |= {"encode": 1, "decode": 1, "decode_windows": 1}
    whole = [name for name in NAMES.value if all(name in results.get(case, {}) for case in counts)]
    return {name: sum(n * results[case][name]["seconds"] for case, n in counts.items()) for name in whole}


def main(_) -> None:
    """Run all cases; print each line as soon as it is known."""
    if unknown := sorted({*CASES.value} - serving.CASES.keys() | {*NAMES.value} - {"ours", "compiled", "eager"}):
        raise app.UsageError(f"unknown cases or rivals: {', '.join(unknown)}")
    meter = Rival("eager", "matmul")
    for _ in range(ROUNDS.value):
        meter.run()
    product = meter.close()
    rate = product["operations"] / product["seconds"]
    print(f"matrix product: {rate / 1e12:.1f} T/s\n{'':20s} {'':9s} {'median':>13s} {'ratio':>6s} {'operations':>11s}")
    results = {}
    for case in CASES.value:
        results[case] = compete(case)
        print("\n".join(rows(case, results[case], rate)), flush=True)
        if OUT.value:
            pathlib.Path(OUT.value).write_text(json.dumps({"matrix_product": rate, "cases": results}, indent=1))
    for name, seconds in views_of_an_object(flags.FLAGS.config, results).items():
        print(f"views of one object: {name:9s} {seconds:8.2f} s")


if __name__ == "__main__":
    serving.define_flags()
    app.run(main)
