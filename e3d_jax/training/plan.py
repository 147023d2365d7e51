"""Plan a run without its hardware: compile the real train step for a TPU topology, or for devices at hand.

    python -m e3d_jax.training.plan --config=configs/envision3d.py --stage=anchor --topology=v5e:16x16
        [--inputs=latents|pictures] [--json=FILE] [--config.mesh.fsdp=16 ...]

Prints memory per device by kind, operations of a step, collectives with their bytes, a lower bound of the step's time,
and whether it fits; if it does not, tries settings with which it would. TPU topologies need libtpu
(``pip install -e ".[tpu-plan]"``) but no TPU. ``--devices=N`` plans for N devices of this machine instead.
"""

import copy
import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from e3d_jax import cameras, commands, files, settings
from e3d_jax.models import build
from e3d_jax.training import costs, losses, sharding, steps
from e3d_jax.training import state as state_lib


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step needs; bytes are of one device.

    Attributes:
      devices: how many, and of which kind.
      memory: bytes by kind. ``temporary`` holds gathered kernels and gradients, ``activations`` all else that the
        compiler sets aside for the step.
      operations: of the whole step, recomputed ones included.
      collectives: by name, how often and the bytes of their results.
      seconds: lower bounds of the step by what limits it: ``compute``, ``memory``, ``network``; empty for a chip
        without published figures.
      capacity: memory of a device, None where it is not known.
    """

    devices: str
    memory: dict[str, float]
    operations: float
    collectives: dict[str, tuple[int, float]]
    seconds: dict[str, float]
    capacity: float | None

    @property
    def fits(self) -> bool | None:
        """Whether the memory suffices; None where it is not known how much there is."""
        return None if self.capacity is None else sum(self.memory.values()) <= self.capacity


class TooLargeError(Exception):
    """The compiler says that a step does not fit; the message is its first line."""


def make_plan(config: Mapping[str, Any], stage: build.Component, devices: Sequence[Any], inputs: str) -> Plan:
    """Compile a stage's train step for devices, which need not exist.

    Args:
      config: a whole system's.
      stage: the component to train.
      devices: the mesh's.
      inputs: whether records hold "latents" (:mod:`e3d_jax.data.encoded`) or "pictures".

    Raises:
      ValueError: the mesh or the batch does not fit the devices, or the stage cannot train on such inputs.
      TooLargeError: the compiler found no way to keep to the memory.
    """
    training = config[stage]["train"]
    settings.check(config)
    settings.check_training(stage, training)
    mesh = sharding.make_mesh(config["mesh"], devices)
    sharding.check_batch(mesh, training["batch_size"], training["accumulate"])
    dtype = "float32" if devices[0].platform == "cpu" else "bfloat16"
    roles = losses.NEEDS[stage] if inputs == "pictures" else ()
    if inputs == "latents":
        try:
            losses.check_encoded(stage, config[stage])
        except ValueError as error:
            raise ValueError(f"{error} (--inputs=pictures)") from error
    make = lambda name: nnx.eval_shape(lambda: state_lib.build_module(config, name, dtype=dtype))  # noqa: E731
    components = {role: make(build.provider(config, stage, role)) for role in roles}
    assembly = steps.assemble(config, stage, make(stage), components, mesh, dtype)
    copied, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, sharding.BATCH)
    at = lambda tree, where: jax.tree.map(  # noqa: E731
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, where
    )
    state = state_lib.like(assembly.params, assembly.optimizer, assembly.stored)
    frozen = at(assembly.frozen, assembly.frozen_stored)
    batch = {
        name: jax.ShapeDtypeStruct((training["batch_size"], *shape), kind, sharding=split)
        for name, (shape, kind) in example_shapes(config, stage, inputs).items()
    }
    key = at(jax.eval_shape(lambda: jax.random.key(0)), copied)
    rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=copied)
    traced = assembly.train_step.trace(state, frozen, batch, key, rate)
    try:
        compiled = traced.lower(lowering_platforms=(devices[0].platform,)).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise TooLargeError(str(error).splitlines()[0]) from error
        raise
    return _summary(compiled, costs.count(traced.jaxpr), devices, state, frozen, batch, assembly)


def _summary(compiled, operations, devices, state, frozen, batch, assembly) -> Plan:
    """The plan of a compiled step."""
    analysis, chip = compiled.memory_analysis(), costs.chip(devices[0].device_kind)
    kernels = [x for x in jax.tree.leaves((state.params, frozen)) if len(x.shape) > 1]
    split_kernels = [x for x in kernels if sharding.FSDP in x.sharding.spec]
    itemsize = 2 if devices[0].platform != "cpu" else 4
    gathered = sum(math.prod(sharding.without_fsdp(x.sharding).shard_shape(x.shape)) for x in split_kernels) * itemsize
    temporary = min(gathered + _bytes(state.params), analysis.temp_size_in_bytes)
    memory = {
        "parameters": _bytes(state.params),
        "average": _bytes(state.ema),
        "optimiser": _bytes(state.optimizer),
        "frozen": _bytes(frozen),
        "batch": _bytes(batch),
        "temporary": temporary,
        "activations": analysis.temp_size_in_bytes - temporary,
        "code": analysis.generated_code_size_in_bytes,
    }
    found = costs.collectives(compiled.as_text())
    seconds = {}
    if chip:
        cost = compiled.cost_analysis() or {}
        seconds = {
            "compute": operations / len(devices) / chip.flops,
            # Every stored array is read and, but for frozen ones and the batch, written once at least.
            "memory": max(cost.get("bytes accessed", 0.0), sum(list(memory.values())[:5])) / chip.bandwidth,
            "network": sum(size for _, size in found.values()) / chip.link,
        }
    kind = f"{len(devices)} x {devices[0].device_kind}"
    return Plan(kind, memory, operations, found, seconds, chip.memory if chip else None)


def example_shapes(
    config: Mapping[str, Any], stage: build.Component, inputs: str
) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shapes and types of a stage's examples, as :mod:`e3d_jax.data.loader` and ``encoded`` make them."""
    size, views, frames = config["size"], cameras.NUM_ANCHORS, cameras.WINDOW_FRAMES
    picture, byte, number = (size, size, 4), jnp.uint8, ((), jnp.float32)
    if inputs == "pictures":
        pictures: dict[str, dict[str, tuple[tuple[int, ...], Any]]] = {
            "autoencoder": {"image": ((8, *picture), byte)},
            "normals": {"image": (picture, byte), "normal": (picture, byte), "azimuth": number},
            "anchor": {"condition": ((2, *picture), byte), "target": ((2, views, *picture), byte), "azimuth": number},
            "interpolation": {"window": ((frames, *picture), byte)},
        }
        return pictures[stage]
    model = config[build.provider(config, stage, "autoencoder")]["model"]
    side = build.latent_size(config, stage)
    latent, half = (side, side, model["latent_channels"]), jnp.float16
    token = (config[stage]["model"]["image_encoder"]["projection_dim"],)
    if stage == "anchor":
        pair = {"condition": ((3, *latent), half), "tokens": ((3, *token), half)}
        blank = {"blank": (latent, half), "blank_token": (token, half)}
        return {"target": ((2, views, *latent), half), "azimuth": number} | pair | blank
    condition = {"anchors": ((3, *latent), half), "token": (token, half), "strength": number}
    return {"window": ((frames, *latent), half)} | condition


def alternatives(config: Mapping[str, Any], stage: str, num_devices: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Settings that need less memory, the cheapest first, and the configs that have them."""
    tensor = config["mesh"]["tensor"]
    # Widths that divide by 64 divide by less, but not by more.
    fsdp = math.gcd(num_devices // tensor, 64)
    whole, names = {"data": -1, "fsdp": fsdp, "tensor": tensor}, f"mesh.data=-1 mesh.fsdp={fsdp}"
    tries: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        (names, whole, {}),
        (f"{stage}.train.remat=full", config["mesh"], {"remat": "full"}),
        (f"{names} {stage}.train.remat=full", whole, {"remat": "full"}),
    ]
    shares, parts = num_devices // tensor, 2
    while config[stage]["train"]["batch_size"] % (shares * parts) == 0:
        changes = {"remat": "full", "accumulate": parts}
        tries.append((f"{names} {stage}.train.remat=full {stage}.train.accumulate={parts}", whole, changes))
        parts *= 2
    for name, mesh, changes in tries:
        if (mesh, {**config[stage]["train"], **changes}) != (config["mesh"], config[stage]["train"]):
            changed = copy.deepcopy(dict(config))
            changed["mesh"] = dict(mesh)
            changed[stage]["train"].update(changes)
            yield name, changed


def report(plan: Plan) -> str:
    """A plan as text."""
    total = sum(plan.memory.values())
    lines = [plan.devices, "memory of a device, GB:"]
    lines += [f"  {name:12} {size / 1e9:8.2f}" for name, size in plan.memory.items()]
    verdict = {None: "", True: ": fits", False: ": does not fit"}[plan.fits]
    capacity = f" of {plan.capacity / 1e9:.0f}" if plan.capacity else ""
    lines += [f"  {'in all':12} {total / 1e9:8.2f}{capacity}{verdict}"]
    lines += [f"operations of a step: {plan.operations / 1e12:.1f} T"]
    lines += [f"{name}: {count}, {size / 1e9:.3f} GB" for name, (count, size) in plan.collectives.items()]
    if plan.seconds:
        bounds = ", ".join(f"{name} {1e3 * value:.1f}" for name, value in plan.seconds.items())
        lines += [f"a step takes at least {1e3 * max(plan.seconds.values()):.1f} ms ({bounds})"]
    return "\n".join(lines)


def tpu_devices(topology: str) -> list[Any]:
    """The devices of a TPU slice that need not exist.

    Raises:
      ValueError: there is no such slice, or libtpu is not installed.
    """
    # No TPU is asked for, and none is taken from another process.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    options: dict[str, Any] = {}
    if topology.endswith(":1x1"):
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        if not re.fullmatch(r"\w+:[1-9]\d*(x[1-9]\d*)*", topology):  # libtpu dies of a zero.
            raise ValueError("not KIND:SIZExSIZE")
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"no topology {topology!r} ({reason}); give one like v5e:16x16, and install libtpu "
            "(pip install -e '.[tpu-plan]')"
        ) from error


def _bytes(tree: Any) -> float:
    """Bytes of a tree's arrays on one device."""
    leaves = jax.tree.leaves(tree)
    return float(sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves))


def _try(config, stage, devices, inputs) -> Plan | None:
    """Plan and print; None when the compiler gives up."""
    try:
        plan = make_plan(config, stage, devices, inputs)
    except TooLargeError as error:
        print(f"does not fit: {error}")
        return None
    print(report(plan), flush=True)
    return plan


def define_flags() -> None:
    """The options of the command; defined late, so that commands can be imported together."""
    flags.DEFINE_enum("stage", None, build.COMPONENTS, "The stage to train.", required=True)
    flags.DEFINE_string("topology", None, "A TPU slice, such as v5e:16x16, v5p:4x4x4 or v6e:16x16.")
    flags.DEFINE_integer("devices", None, "So many devices of this machine instead.", lower_bound=1)
    flags.DEFINE_enum("inputs", "latents", ["latents", "pictures"], "What the records hold.")
    flags.DEFINE_string("json", None, "File to write the last plan to, too, with the settings that it changes.")


def main(_) -> None:
    """Plans, and looks for settings that fit."""
    config, stage = flags.FLAGS.config.to_dict(), flags.FLAGS.stage
    jax.config.update("jax_num_cpu_devices", flags.FLAGS.devices or 1)
    sharding.stable_cache_keys()
    if flags.FLAGS.topology:
        jax.config.update("jax_platforms", "cpu")
    if (flags.FLAGS.topology is None) == (flags.FLAGS.devices is None):
        raise ValueError("give either --topology or --devices")
    devices = tpu_devices(flags.FLAGS.topology) if flags.FLAGS.topology else jax.devices()[: flags.FLAGS.devices]
    if flags.FLAGS.devices and len(devices) < flags.FLAGS.devices:
        raise ValueError(f"this machine has {len(devices)} devices, not {flags.FLAGS.devices}; give what it has")
    plan, changes = _try(config, stage, devices, flags.FLAGS.inputs), list[str]()
    if plan is None or plan.fits is False:
        for name, changed in alternatives(config, stage, len(devices)):
            print(f"\nwith {name}:", flush=True)
            plan = _try(changed, stage, devices, flags.FLAGS.inputs)
            changes = [f"--config.{change}" for change in name.split()]
            if plan and plan.fits:
                print(f"\nit fits with {' '.join(changes)}")
                break
        else:
            print("\nnothing tried makes it fit; take more devices, or a smaller batch")
    if flags.FLAGS.json and plan:
        kept = {"settings": changes, **dataclasses.asdict(plan)}
        files.write_atomically(pathlib.Path(flags.FLAGS.json), json.dumps(kept, indent=2).encode())


if __name__ == "__main__":
    define_flags()
    commands.run(main, "e3d_jax.training.plan", "configs/envision3d.py")
