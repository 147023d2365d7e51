"""What a train step moves through the memory of a GPU that is not there, by kind of kernel and by line of code.

    pip install "jax[cuda12]"
    JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 python benchmarks/traffic.py --config=configs/base.py --stage=anchor \\
        --config.anchor.train.batch_size=32 "--config.anchor.train.freeze=('image_encoder',)" [--lines=40] [--out=FILE]

XLA compiles the step for an NVIDIA H200 without autotuning, which needs the device; the base system's interpolation
needs ``XLA_FLAGS=--xla_gpu_enable_triton_gemm=false``, too. Every kernel of the program counts the bytes of its
operands and results once: a lower bound where a kernel reads something twice, an upper bound where it reads only a part
of an operand. A line of code has the kernels whose result it is; "backward" ones compute gradients.
"""

import collections
import dataclasses
import json
import pathlib
import re
import time

import jax
from absl import app, flags
from jax.experimental import topologies
from ml_collections import config_flags

from e3d_jax import files, stages
from e3d_jax.training import costs, plan

CONFIG = config_flags.DEFINE_config_file("config", "configs/base.py", "The system.")
STAGE = flags.DEFINE_string("stage", "anchor", "Component to train.")
LINES = flags.DEFINE_integer("lines", 40, "How many lines of code to print.", lower_bound=0)
OUT = flags.DEFINE_string("out", None, "JSON file for the kernels.")

H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 registers_per_core_limit: 65536
  registers_per_block_limit: 65536 memory_bandwidth: 4800000000000 l2_cache_size: 62914560 clock_rate_ghz: 1.98
  device_memory_size: 150000000000 cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H200"
"""
# They name arrays, but move nothing.
FREE = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "partition-id")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel of a program: its kind, the bytes that it moves, how often it runs, and the line of code."""

    kind: str
    moved: int
    times: int
    line: str


def read_table(program: str, name: str) -> dict[int, str]:
    """Return one of the numbered tables before a program."""
    found = re.search(rf"^{name}\n((?:\d+ .*\n)+)", program, re.M)
    assert found, f"no {name}"
    return {int(number): rest for number, rest in (line.split(" ", 1) for line in found[1].splitlines())}


class Lines:
    """From the stack frames of a program to lines of this project's code."""

    def __init__(self, program: str):
        names = ("FileNames", "FileLocations", "StackFrames")
        self._files, self._locations, self._frames = (read_table(program, name) for name in names)

    def __call__(self, frame: int) -> str:
        """Return the innermost line in the package; empty if there is none."""
        while frame:
            entry = self._frames[frame]
            place = self._locations[_number(entry, "file_location_id")]
            name = self._files[_number(place, "file_name_id")].strip('"')
            if "/e3d_jax/" in name:
                return f"{name.rpartition('/e3d_jax/')[2]}:{_number(place, 'line')}"
            parent = _number(entry, "parent_frame_id")
            frame = 0 if parent == frame else parent
        return ""


def _number(text: str, name: str) -> int:
    found = re.search(rf"\b{name}=(\d+)", text)
    return int(found[1]) if found else 0


def read_kernels(program: str) -> list[Kernel]:
    """Return the kernels of an optimized program, those of loops as often as they run."""
    computations: dict[str, list[str]] = {}
    for header, body in re.findall(r"^((?:ENTRY )?%[\w.\-]+) \(.*\{\n((?:.*\n)*?)\}", program, re.M):
        computations[header] = body.splitlines()
    lines, kernels = Lines(program), []

    def collect(computation: str, times: int) -> None:
        sizes: dict[str, int] = {}
        for text in computations[computation]:
            found = re.match(r"\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([\w\-]+)\((.*?)\)(.*)$", text)
            if not found:
                continue
            name, shapes, operation, operands, rest = found.groups()
            sizes[name] = sum(costs.array_bytes(shapes))
            if operation == "while":
                count = re.search(r'"known_trip_count":\{"n":"(\d+)"', rest)
                inner = re.search(r"body=(%[\w.\-]+)", rest)
                assert inner, text
                collect(inner[1], times * (int(count[1]) if count else 1))
            elif operation not in FREE:
                moved = sizes[name] + sum(sizes.get(x, 0) for x in re.findall(r"%([\w.\-]+)", operands))
                line = lines(_number(rest, "stack_frame_id")) + (" backward" if "transpose(" in rest else "")
                kernels.append(Kernel(_kind(operation, rest), moved, times, line))

    collect(next(name for name in computations if name.startswith("ENTRY")), 1)
    return kernels


def _kind(operation: str, rest: str) -> str:
    """Return what a kernel is made by: an emitter of XLA, Triton, or a library."""
    for pattern in (r'"kind":"(__triton\w*)"', r'custom_call_target="([^"]+)"', r"kind=(k\w+)"):
        if found := re.search(pattern, rest):
            return found[1].strip("_")
    return operation


def main(_) -> None:
    """Compile the step and print its kernels."""
    # Attention asks it which kernels there are.
    jax.default_backend = lambda: "gpu"  # type: ignore[assignment]
    topology = topologies.get_topology_desc(platform="cuda", target_config=H200, topology="1x1x1")
    traced, _ = plan.trace_step(stages.parse_config(CONFIG.value.to_dict()), STAGE.value, topology.devices, "latents")
    lowered = traced.lower(lowering_platforms=("cuda",))
    start = time.perf_counter()
    program = lowered.compile().as_text()
    print(f"compiled in {time.perf_counter() - start:.0f} s")
    kernels = read_kernels(program)
    if OUT.value:
        rows = json.dumps([dataclasses.asdict(kernel) for kernel in kernels], indent=1)
        files.write_atomically(pathlib.Path(OUT.value), rows.encode())
    for title, name, limit in (("kind", "kind", None), ("line of code", "line", LINES.value)):
        moved: collections.Counter[str] = collections.Counter()
        times: collections.Counter[str] = collections.Counter()
        for kernel in kernels:
            moved[getattr(kernel, name)] += kernel.moved * kernel.times
            times[getattr(kernel, name)] += kernel.times
        print(f"\n{title:45} kernels        GB\n{'all':45} {times.total():7} {moved.total() / 1e9:9.2f}")
        for key, size in moved.most_common(limit):
            print(f"{key:45} {times[key]:7} {size / 1e9:9.2f}")


if __name__ == "__main__":
    app.run(main)
