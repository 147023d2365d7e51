"""Where arrays live: one mesh with named axes, and rules that map the logical axes of parameters to it.

    data     splits examples; parameters are copied
    fsdp     splits examples, and stored parameters, EMA and optimizer state (arXiv 1910.02054, stage 3)
    tensor   splits heads and hidden channels of a layer

The logical axes of a parameter follow from the kind of its layer, that is, from the end of its path. An array without
logical axes, such as a bias, is copied to every device.
"""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import layout, mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from e3d_jax import config as config_lib
from e3d_jax import settings

T = TypeVar("T")
DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec((DATA, FSDP))

# Logical axes of the last two dimensions by the end of the path; the first match counts.
LOGICAL_AXES = (
    (re.compile(r"\.(to_q|to_k|to_v)\.kernel$"), ("embed", "heads")),
    (re.compile(r"\.to_out\.kernel$"), ("heads", "embed")),
    (re.compile(r"\.(ff\w*\.proj|fc1)\.kernel$"), ("embed", "mlp")),
    (re.compile(r"\.(ff\w*\.out|fc2)\.kernel$"), ("mlp", "embed")),
    (re.compile(r"\.(kernel|embedding)$"), ("in", "out")),
)


def make_mesh(sizes: config_lib.MeshSettings, devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh of all devices, in an order that suits their network.

    Args:
      sizes: of the axes; one of them may be -1 for all devices that are left.
      devices: those to use; all that JAX sees when not given.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    given = settings.to_dict(sizes)
    shape = [given[axis] for axis in AXES]
    if 0 in shape:
        raise ValueError(f"the mesh is {given}; give each axis a size, or -1 for the devices that are left")
    known = int(np.prod([size for size in shape if size != -1]))
    if shape.count(-1) > 1 or len(devices) % known or (-1 not in shape and known != len(devices)):
        raise ValueError(f"a mesh of {given} does not fit {len(devices)} devices; change config.mesh")
    shape = [len(devices) // known if size == -1 else size for size in shape]
    return Mesh(arrange(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def refit(sizes: config_lib.MeshSettings, num_devices: int) -> config_lib.MeshSettings:
    """Return the sizes of a mesh of fewer or more devices than a run began with.

    Sizes that fit stay. Otherwise ``tensor`` and then ``fsdp`` get the largest size that divides the devices and does
    not exceed the given one, as they decide whether the model fits into memory, and ``data`` gets the rest.
    """
    shape = [getattr(sizes, axis) for axis in AXES]
    known = math.prod(size for size in shape if size != -1)
    if num_devices == known or (-1 in shape and num_devices % known == 0):
        return sizes

    def divisor(limit: int, of: int) -> int:
        return max(size for size in range(1, of + 1) if of % size == 0 and (size <= limit or limit == -1))

    tensor = divisor(sizes.tensor, num_devices)
    return config_lib.MeshSettings(data=-1, fsdp=divisor(sizes.fsdp, num_devices // tensor), tensor=tensor)


def arrange(shape: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """Return devices in the shape of a mesh: neighbors on its later axes are near each other.

    Several slices of TPUs, or hosts of GPUs, share only the first axis, along which the least is exchanged; if it
    cannot be shared evenly, devices keep their order.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if shape[0] % slices:
        return np.asarray(devices).reshape(shape)
    within, across = (shape[0] // slices, *shape[1:]), (slices, *(1 for _ in shape[1:]))
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def shardings(tree: Any, mesh: Mesh, rules: config_lib.Rules) -> Any:
    """Return the sharding of every array of a tree of parameters, EMA or optimizer state, by the end of its path.

    Args:
      tree: arrays, or their shapes.
      mesh: of :func:`make_mesh`.
      rules: pairs (logical axis, mesh axis), most wanted first. A rule is passed over where its mesh axis is taken or
        does not divide the dimension, so that a later rule may use it.

    Raises:
      ValueError: a rule names an unknown axis.
    """
    known = {name for _, names in LOGICAL_AXES for name in names}
    for logical, axis in rules:
        if logical not in known or axis not in AXES:
            raise ValueError(
                f"the rule {logical!r} to {axis!r} names an unknown axis; logical axes are "
                f"{', '.join(sorted(known))}, mesh axes {', '.join(AXES)}"
            )

    def choose(path, leaf) -> NamedSharding:
        axes = _logical_axes(path, len(leaf.shape))
        chosen: list[str | None] = [None] * len(leaf.shape)
        for logical, axis in rules:
            for dim, name in enumerate(axes):
                free = chosen[dim] is None and axis not in chosen and mesh.shape[axis] > 1
                if free and name == logical and leaf.shape[dim] % mesh.shape[axis] == 0:
                    chosen[dim] = axis
        return NamedSharding(mesh, PartitionSpec(*chosen))

    return jax.tree_util.tree_map_with_path(choose, tree)


def _logical_axes(path: Any, ndim: int) -> tuple[str | None, ...]:
    """Return the logical axes of a parameter; None for those that are never split, such as a convolution's window."""
    name = "." + jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
    last = next((axes for pattern, axes in LOGICAL_AXES if ndim > 1 and pattern.search(name)), ())
    return (None,) * (ndim - len(last)) + last


def gathered(params: Any, dtype: Any, stored: Any) -> Any:
    """Return parameters as the computation needs them: kernels in its type, and whole along ``fsdp``.

    The cast comes first, so that devices exchange half the bytes. Gradients take the reverse path and end up as stored.
    """

    def gather(param, stored):
        @jax.custom_vjp
        def whole(param):
            cast = param.astype(dtype) if param.ndim > 1 else param
            return jax.lax.with_sharding_constraint(cast, without_fsdp(stored))

        def scatter(_, gradient):
            # TPUs have layouts of their own, and this one would not help them.
            if gradient.ndim > 2 and stored.mesh.devices.flat[0].platform != "tpu":
                gradient = _row_major(gradient, stored)
            # Never whole: a device needs only the sum of its own part.
            return (jax.lax.with_sharding_constraint(gradient.astype(param.dtype), stored),)

        whole.defvjp(lambda param: (whole(param), None), scatter)
        return whole(param)

    return jax.tree.map(gather, params, stored)


def _row_major(gradient: jax.Array, stored: NamedSharding) -> jax.Array:
    """Return a gradient in the memory layout of its parameter.

    cuDNN returns the gradient of a convolution's kernel in another one. Left alone, XLA would update parameter,
    optimizer state and EMA in that layout, too, and copy all of them there and back.
    """
    order = layout.Layout(tuple(range(gradient.ndim)))
    constrain = functools.partial(layout.with_layout_constraint, layouts=order)
    # Each device on its own: the partitioner would gather the gradient first.
    return jax.shard_map(constrain, mesh=stored.mesh, in_specs=stored.spec, out_specs=stored.spec)(gradient)


def without_fsdp(stored: NamedSharding) -> NamedSharding:
    """Return the sharding of the same array when it is whole along ``fsdp``."""
    return NamedSharding(stored.mesh, PartitionSpec(*(None if axis == FSDP else axis for axis in stored.spec)))


def check_batch(mesh: Mesh, batch_size: int, grad_accum_steps: int) -> None:
    """Refuse a batch that does not divide over the devices and the gradient-accumulation steps.

    Raises:
      ValueError: it does not divide.
    """
    shares = mesh.shape[DATA] * mesh.shape[FSDP]
    if batch_size % (shares * grad_accum_steps):
        raise ValueError(
            f"batch_size={batch_size} does not divide over {shares} devices (data x fsdp) and "
            f"{grad_accum_steps} gradient-accumulation steps (train.grad_accum_steps); change one of them"
        )


def own_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, " b"]:
    """Return which rows of a batch this process has to read, ascending.

    Raises:
      ValueError: ``tensor`` spans several processes.
    """
    if mesh.shape[TENSOR] > jax.local_device_count():
        raise ValueError(
            f"the mesh's tensor axis is {mesh.shape[TENSOR]}, but a process has {jax.local_device_count()} devices; "
            "keep tensor within a process"
        )
    slices = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices]))


def global_batch(batch: T, mesh: Mesh) -> T:
    """Return the batch of all processes, given the rows of this one (:func:`own_rows`)."""
    split = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(split, rows), batch)
