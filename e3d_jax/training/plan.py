"""Plan a run without its hardware: compile the real train step for a TPU topology, or for devices at hand.

A plan has the memory per device by kind, FLOPs per step, collectives with their bytes, a lower bound of the step's
time, and whether the step fits; :func:`search` then looks for settings that need less memory. TPU topologies need
libtpu (``pip install -e ".[tpu-plan]"``) but no TPU.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from e3d_jax import config as config_lib
from e3d_jax import distributed, files, stages
from e3d_jax.training import costs, sharding, steps
from e3d_jax.training import state as state_lib


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step needs.

    Attributes:
      devices: how many, and of which kind.
      memory: bytes per device by kind. ``temporary`` holds gathered kernels and gradients, ``activations`` everything
        else that the compiler reserves for the step.
      flops: of the whole step on all devices, recomputed ones included.
      collectives: by name, how often they occur and the bytes of their results per device.
      seconds: lower bounds of the step's time by what limits it (``compute``, ``memory``, ``network``); empty for a
        chip without published figures.
      capacity: bytes of memory per device; None if it is not known.
    """

    devices: str
    memory: dict[str, float]
    flops: float
    collectives: dict[str, tuple[int, float]]
    seconds: dict[str, float]
    capacity: float | None

    @property
    def fits(self) -> bool | None:
        """Whether the memory suffices; None if it is not known how much there is."""
        return None if self.capacity is None else sum(self.memory.values()) <= self.capacity


class TooLargeError(Exception):
    """The compiler says that a step does not fit; the message is its first line."""


def make_plan(config: config_lib.SystemConfig, stage: str, devices: Sequence[Any], inputs: str) -> Plan:
    """Compile a stage's train step for devices, which need not exist; arguments and errors as of :func:`trace_step`.

    Raises:
      TooLargeError: the compiler found no way to stay within the memory.
    """
    traced, arguments = trace_step(config, stage, devices, inputs)
    return _summary(compile_for(devices[0], traced), costs.count_flops(traced.jaxpr), devices, *arguments[:3])


def trace_step(
    config: config_lib.SystemConfig, stage: str, devices: Sequence[Any], inputs: str
) -> tuple[Any, tuple[Any, ...]]:
    """Trace a stage's train step for devices, and return it with the shapes of its arguments.

    Args:
      config: of the system.
      stage: the component to train.
      devices: of the mesh.
      inputs: kind of the records, "latents" or "images".

    Raises:
      ValueError: the mesh or the batch does not fit the devices, or the stage cannot be trained, or not on such inputs.
    """
    definition, train = stages.get(stage), config.training(stage)
    mesh = sharding.make_mesh(config.system.mesh, devices)
    sharding.check_batch(mesh, train.batch_size, train.grad_accum_steps)
    if inputs not in definition.sources:
        known = " or ".join(definition.sources)
        raise ValueError(f"the {stage} stage trains on {known}, not on {inputs}; give --inputs={known}")
    try:
        definition.check_source(inputs, config[stage])
    except ValueError as error:
        raise ValueError(f"{error} (--inputs=images)") from error
    dtype = distributed.compute_dtype(devices[0].platform)

    def abstract_module(name: str) -> nnx.Module:
        return nnx.eval_shape(lambda: state_lib.build_module(config, name, dtype=dtype))

    roles = definition.needs if inputs == "images" else ()
    components = {role: abstract_module(config.provider(stage, role)) for role in roles}
    assembly = steps.assemble(config, stage, abstract_module(stage), components, mesh, dtype)
    copied, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, sharding.BATCH)

    def on_mesh(tree: Any, places: Any) -> Any:
        return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places)

    state = state_lib.like(assembly.params, assembly.optimizer, assembly.stored)
    frozen = on_mesh(assembly.frozen, assembly.frozen_stored)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((train.batch_size, *x.shape), x.dtype, sharding=split),
        definition.sources[inputs].spec(config),
    )
    key = on_mesh(jax.eval_shape(lambda: jax.random.key(0)), copied)
    rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=copied)
    arguments = state, frozen, batch, key, rate
    return assembly.train_step.trace(*arguments), arguments


def compile_for(device: Any, traced: Any) -> Any:
    """Compile a traced function for a device, or the first of several.

    Raises:
      TooLargeError: the compiler found no way to stay within the memory.
    """
    try:
        return traced.lower(lowering_platforms=(device.platform,)).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise TooLargeError(str(error).splitlines()[0]) from error
        raise


def _summary(
    compiled: Any, flops: float, devices: Sequence[Any], state: state_lib.TrainState, frozen: Any, batch: Any
) -> Plan:
    """Return the plan of a compiled step."""
    analysis, chip = compiled.memory_analysis(), costs.chip(devices[0].device_kind)
    kernels = [x for x in jax.tree.leaves((state.params, frozen)) if len(x.shape) > 1]
    split_kernels = [x for x in kernels if sharding.FSDP in x.sharding.spec]
    itemsize = jnp.dtype(distributed.compute_dtype(devices[0].platform)).itemsize
    gathered = sum(math.prod(sharding.without_fsdp(x.sharding).shard_shape(x.shape)) for x in split_kernels) * itemsize
    stored = {
        "parameters": _bytes(state.params),
        "EMA": _bytes(state.ema),
        "optimizer": _bytes(state.optimizer_state),
        "frozen": _bytes(frozen),
        "batch": _bytes(batch),
    }
    temporary = min(gathered + stored["parameters"], analysis.temp_size_in_bytes)
    memory = stored | {
        "temporary": temporary,
        "activations": analysis.temp_size_in_bytes - temporary,
        "code": analysis.generated_code_size_in_bytes,
    }
    found = costs.collectives(compiled.as_text())
    seconds = {}
    if chip:
        cost = compiled.cost_analysis() or {}
        seconds = {
            "compute": flops / len(devices) / chip.flops,
            # Every stored array is read and, except frozen ones and the batch, written at least once.
            "memory": max(cost.get("bytes accessed", 0.0), sum(stored.values())) / chip.bandwidth,
            "network": sum(size for _, size in found.values()) / chip.link,
        }
    kind = f"{len(devices)} x {devices[0].device_kind}"
    return Plan(kind, memory, flops, found, seconds, chip.memory if chip else None)


def alternatives(
    config: config_lib.SystemConfig, stage: str, num_devices: int
) -> Iterator[tuple[str, config_lib.SystemConfig]]:
    """Yield settings that need less memory, as on a command line, and the config with them; the cheapest first."""
    mesh, train = config.system.mesh, config.training(stage)
    shares = num_devices // mesh.tensor
    # Widths that are multiples of 64 divide by factors of 64, but not by more.
    split = dataclasses.replace(mesh, data=-1, fsdp=math.gcd(shares, 64))
    names = f"mesh.data=-1 mesh.fsdp={split.fsdp}"
    remat = dataclasses.replace(train, remat="full")
    tries = [
        (names, split, train),
        (f"{stage}.train.remat=full", mesh, remat),
        (f"{names} {stage}.train.remat=full", split, remat),
    ]
    parts = 2
    while train.batch_size % (shares * parts) == 0:
        name = f"{names} {stage}.train.remat=full {stage}.train.grad_accum_steps={parts}"
        tries.append((name, split, dataclasses.replace(remat, grad_accum_steps=parts)))
        parts *= 2
    for name, changed_mesh, changed_train in tries:
        if (changed_mesh, changed_train) != (mesh, train):
            yield name, _changed(config, stage, changed_mesh, changed_train)


def _changed(
    config: config_lib.SystemConfig, stage: str, mesh: config_lib.MeshSettings, train: config_lib.TrainSettings
) -> config_lib.SystemConfig:
    """Return a config with another mesh and another training of a stage."""
    component = dataclasses.replace(config[stage], train=train)
    return config_lib.SystemConfig(
        dataclasses.replace(config.system, mesh=mesh), {**config.components, stage: component}
    )


def search(
    config: config_lib.SystemConfig, stage: str, devices: Sequence[Any], inputs: str, capacity: float | None = None
) -> tuple[Plan | None, list[str]]:
    """Plan a run and print the plan; if it does not fit, do the same with settings that need less memory.

    Args:
      config: of the system.
      stage: the component to train.
      devices: of the mesh.
      inputs: kind of the records, "latents" or "images".
      capacity: bytes of memory that each device is to have, if not those of its kind.

    Returns:
      The last plan, None if the compiler gave up, and the flags that it changes.
    """
    plan, changes = _print_plan(config, stage, devices, inputs, capacity), list[str]()
    if plan is None or plan.fits is False:
        for name, changed in alternatives(config, stage, len(devices)):
            print(f"\nwith {name}:", flush=True)
            plan = _print_plan(changed, stage, devices, inputs, capacity)
            changes = [f"--config.{change}" for change in name.split()]
            if plan and plan.fits:
                print(f"\nit fits with {' '.join(changes)}")
                break
        else:
            print("\nno setting that was tried makes it fit; use more devices or a smaller batch")
    return plan, changes


def _print_plan(
    config: config_lib.SystemConfig, stage: str, devices: Sequence[Any], inputs: str, capacity: float | None
) -> Plan | None:
    """Plan and print; None if the compiler gives up."""
    try:
        plan = make_plan(config, stage, devices, inputs)
    except TooLargeError as error:
        print(f"does not fit: {error}")
        return None
    if capacity is not None:
        plan = dataclasses.replace(plan, capacity=capacity)
    print(report(plan), flush=True)
    return plan


def report(plan: Plan) -> str:
    """Return a plan as text."""
    total = sum(plan.memory.values())
    lines = [plan.devices, "memory per device, GB:"]
    lines += [f"  {name:12} {size / 1e9:8.2f}" for name, size in plan.memory.items()]
    verdict = {None: "", True: ": fits", False: ": does not fit"}[plan.fits]
    capacity = f" of {plan.capacity / 1e9:.0f}" if plan.capacity else ""
    lines += [f"  {'total':12} {total / 1e9:8.2f}{capacity}{verdict}"]
    lines += [f"TFLOPs per step: {plan.flops / 1e12:.1f}"]
    lines += [f"{name}: {count}, {size / 1e9:.3f} GB" for name, (count, size) in plan.collectives.items()]
    if plan.seconds:
        bounds = ", ".join(f"{name} {1e3 * value:.1f}" for name, value in plan.seconds.items())
        lines += [f"a step takes at least {1e3 * max(plan.seconds.values()):.1f} ms ({bounds})"]
    return "\n".join(lines)


def find_devices(topology: str | None, num_devices: int | None) -> list[Any]:
    """Return the devices to plan for; call it before anything else uses JAX.

    Args:
      topology: of a TPU slice, which need not exist.
      num_devices: how many devices of this machine to take instead.

    Raises:
      ValueError: both or neither are given, there are fewer devices, or the topology is unknown.
    """
    if (topology is None) == (num_devices is None):
        raise ValueError("give either --topology or --devices")
    jax.config.update("jax_num_cpu_devices", num_devices or 1)
    if topology:
        jax.config.update("jax_platforms", "cpu")
        return tpu_devices(topology)
    devices = jax.devices()[:num_devices]
    if len(devices) < (num_devices or 0):
        raise ValueError(f"this machine has {len(devices)} devices, not {num_devices}; lower --devices")
    return devices


def tpu_devices(topology: str) -> list[Any]:
    """Return the devices of a TPU slice that need not exist.

    Raises:
      ValueError: there is no such slice, or libtpu is not installed.
    """
    # No TPU is looked for, and none is taken from another process.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    options: dict[str, Any] = {}
    if topology.endswith(":1x1"):
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        if not re.fullmatch(r"\w+:[1-9]\d*(x[1-9]\d*)*", topology):  # A zero crashes libtpu.
            raise ValueError("not KIND:SIZExSIZE")
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"no topology {topology!r} ({reason}); give one like v5e:16x16, and install libtpu "
            "(pip install -e '.[tpu-plan]')"
        ) from error


def write_json(path: str | os.PathLike, plan: Plan, changes: Sequence[str]) -> None:
    """Write a plan and the flags that it changes to a file.

    Raises:
      OSError: it cannot be written.
    """
    data = {"settings": list(changes), **dataclasses.asdict(plan)}
    files.write_atomically(pathlib.Path(path), json.dumps(data, indent=2).encode())


def _bytes(tree: Any) -> float:
    """Return the bytes of a tree's arrays on one device."""
    leaves = jax.tree.leaves(tree)
    return float(sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves))
