"""Plan the sampling of a stage without its hardware: compile it for a device that need not exist, batch by batch."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from e3d_jax import config as config_lib
from e3d_jax import distributed, stages
from e3d_jax.models import layers
from e3d_jax.training import costs, plan


def make_plan(config: config_lib.SystemConfig, stage: str, device: Any, batch_size: int) -> plan.Plan:
    """Compile the sampling of a batch, from the encoding of its condition to decoded images.

    Args:
      config: of the system; ``<stage>.sampling`` has the number of steps.
      stage: that samples.
      device: which one.
      batch_size: examples at a time: objects or, for the interpolation, windows.

    Raises:
      ValueError: the stage samples nothing.
      e3d_jax.training.plan.TooLargeError: the compiler found no way to stay within the memory.
    """
    definition, component = stages.get(stage), config[stage]
    if (show := definition.show) is None:
        sampling = ", ".join(name for name, other in stages.STAGES.items() if other.show is not None)
        raise ValueError(f"the {stage} stage samples no images; give --stage={sampling}")
    dtype = distributed.compute_dtype(device.platform)

    def build(name: str) -> nnx.Module:
        def with_types():
            return stages.build(config, name, layers.Types(dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0)))

        return nnx.eval_shape(with_types)

    modules = {role: build(config.provider(stage, role)) for role in definition.needs} | {stage: build(stage)}
    graph, state = nnx.split(modules)

    def sample(state, batch, key):
        frozen = nnx.merge(graph, state)
        return show(frozen.pop(stage), frozen, batch, key, component, config.layout)[1]

    place = jax.sharding.SingleDeviceSharding(device)

    def on_device(tree: Any, *lead: int) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype, sharding=place), tree)

    batch = on_device(definition.sources["images"].spec(config), batch_size)
    key = on_device(jax.eval_shape(lambda: jax.random.key(0)))
    traced = jax.jit(sample).trace(on_device(state), batch, key)
    compiled = plan.compile_for(device, traced)
    analysis, chip, flops = compiled.memory_analysis(), costs.chip(device.device_kind), costs.count_flops(traced.jaxpr)
    parameters = float(sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state)))
    memory = {
        "parameters": parameters,
        "batch": analysis.argument_size_in_bytes - parameters,
        "activations": analysis.temp_size_in_bytes,
        "images": analysis.output_size_in_bytes,
        "code": analysis.generated_code_size_in_bytes,
    }
    seconds = {}
    if chip:
        # Each step reads all parameters.
        read = component.sampling.num_steps * parameters
        seconds = {"compute": flops / chip.flops, "memory": read / chip.bandwidth}
    return plan.Plan(f"1 x {device.device_kind}", memory, flops, {}, seconds, chip.memory if chip else None)


def table(
    config: config_lib.SystemConfig,
    stage: str,
    device: Any,
    batches: Sequence[int],
    *,
    capacity: float | None = None,
    price: float | None = None,
) -> str:
    """Return plans of several batches as a table.

    Args:
      config: of the system.
      stage: that samples.
      device: which one.
      batches: numbers of examples at a time.
      capacity: bytes of memory of the device, if it is another one than the plan's.
      price: of an hour of the device, in any currency.

    Raises:
      ValueError: see :func:`make_plan`.
    """
    per_object = stages.get(stage).examples_per_object(config)
    lines = [f"{stage} on 1 x {device.device_kind}; an object takes {per_object} of a batch"]
    lines += [f"{'batch':>6}{'memory, GB':>12}{'':>10}{'TFLOPs':>10}{'seconds':>10}{'per 1000 objects':>24}"]
    for batch in batches:
        try:
            found = make_plan(config, stage, device, batch)
        except plan.TooLargeError:
            lines += [f"{batch:6}  does not fit"]
            break
        total, most = sum(found.memory.values()), capacity or found.capacity
        fits = "" if most is None else "fits" if total <= most else "too much"
        line = f"{batch:6}{total / 1e9:12.2f}{fits:>10}{found.flops / 1e12:10.1f}"
        if found.seconds:
            seconds = max(found.seconds.values())
            hours = 1000 * per_object / batch * seconds / 3600
            cost = "" if price is None else f", {hours * price:.2f}"
            line += f"{'> ' + format(seconds, '.3f'):>10}{f'> {hours:.3f} h{cost}':>24}"
        lines += [line]
    return "\n".join(lines)
