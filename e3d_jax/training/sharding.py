"""Where arrays live: one mesh with named axes, and rules from the logical axes of parameters to it.

    data     examples; parameters are copied
    fsdp     examples, and stored parameters, moments and averages (arXiv 1910.02054, stage 3)
    tensor   heads and hidden channels of a layer

A parameter's logical axes follow from the kind of its layer, that is from the end of its path. An array that has no
logical axes, such as a bias, is copied to every device.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import layout, mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec((DATA, FSDP))
Rules = Sequence[Sequence[str]]

# Logical axes of the last two dimensions, by the end of the path; the first match counts.
LOGICAL_AXES = (
    (re.compile(r"\.(to_q|to_k|to_v)\.kernel$"), ("embed", "heads")),
    (re.compile(r"\.to_out\.kernel$"), ("heads", "embed")),
    (re.compile(r"\.(ff\w*\.proj|fc1)\.kernel$"), ("embed", "mlp")),
    (re.compile(r"\.(ff\w*\.out|fc2)\.kernel$"), ("mlp", "embed")),
    (re.compile(r"\.(kernel|embedding)$"), ("in", "out")),
)


def stable_cache_keys() -> None:
    """Let a process find in the compilation cache what another compiled for several GPUs.

    Fused attention brings a rule of its own for being split, and the address of that rule would be a part of the key.
    Without it, options of the attention that do not show in its operands' shapes are not in the key, either: who adds
    one, say a mask, has to empty the cache.
    """
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of all devices, in an order that suits their network.

    Args:
      sizes: of the axes ``data``, ``fsdp`` and ``tensor``; one of them may be -1 for all devices that are left.
      devices: those to use; all that JAX sees when not given.

    Raises:
      ValueError: an axis is unknown or missing, or the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if sorted(sizes) != sorted(AXES) or any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(f"the mesh is {dict(sizes)}; give a size, or -1 for the rest, to each of {', '.join(AXES)}")
    shape = [sizes[axis] for axis in AXES]
    known = int(np.prod([size for size in shape if size != -1]))
    if shape.count(-1) > 1 or len(devices) % known or (-1 not in shape and known != len(devices)):
        raise ValueError(f"a mesh of {dict(sizes)} does not fit {len(devices)} devices; change config.mesh")
    shape = [len(devices) // known if size == -1 else size for size in shape]
    return Mesh(arrange(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arrange(shape: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """Devices in the shape of a mesh: neighbours on its later axes are near each other.

    Several slices of TPUs, or hosts of GPUs, share only the first axis, along which the least is exchanged; where it
    cannot be shared evenly, devices stay in their order.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if shape[0] % slices:
        return np.asarray(devices).reshape(shape)
    within, across = (shape[0] // slices, *shape[1:]), (slices, *(1 for _ in shape[1:]))
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def shardings(tree: Any, mesh: Mesh, rules: Rules) -> Any:
    """The sharding of every array of a tree of parameters, moments or averages, by the end of its path.

    Args:
      tree: arrays, or their shapes.
      mesh: of :func:`make_mesh`.
      rules: pairs (logical axis, mesh axis), the most wanted first. A rule is passed over where the mesh axis is taken
        or does not divide the dimension, so that a later rule may use it.

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
    """The logical axes of a parameter; None for those that are never split, as a convolution's window."""
    name = "." + jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
    last = next((axes for pattern, axes in LOGICAL_AXES if ndim > 1 and pattern.search(name)), ())
    return (None,) * (ndim - len(last)) + last


def gathered(params: Any, dtype: Any, stored: Any) -> Any:
    """Parameters as the computation wants them: kernels in its type, and whole along ``fsdp``.

    The cast comes first, so that devices exchange half of the bytes; gradients go the other way and end up as stored.
    """

    def gather(param, stored):
        @jax.custom_vjp
        def whole(param):
            cast = param.astype(dtype) if param.ndim > 1 else param
            return jax.lax.with_sharding_constraint(cast, without_fsdp(stored))

        def scatter(_, gradient):
            # TPUs have orders of their own, and no use for this one.
            if gradient.ndim > 2 and stored.mesh.devices.flat[0].platform != "tpu":
                gradient = _row_major(gradient, stored)
            # Not whole first: a device needs no more than the sum of its own part.
            return (jax.lax.with_sharding_constraint(gradient.astype(param.dtype), stored),)

        whole.defvjp(lambda param: (whole(param), None), scatter)
        return whole(param)

    return jax.tree.map(gather, params, stored)


def _row_major(gradient: jax.Array, stored: NamedSharding) -> jax.Array:
    """A gradient in the order of dimensions of its parameter.

    cuDNN gives that of a convolution's kernel in another. Left alone, XLA would update parameter, moments and average
    in that order, too, and copy all of them there and back.
    """
    order = layout.Layout(tuple(range(gradient.ndim)))
    constrain = functools.partial(layout.with_layout_constraint, layouts=order)
    # Each device for itself: the partitioner would gather what it is to lay out.
    return jax.shard_map(constrain, mesh=stored.mesh, in_specs=stored.spec, out_specs=stored.spec)(gradient)


def without_fsdp(stored: NamedSharding) -> NamedSharding:
    """The sharding of an array that is whole along ``fsdp``."""
    return NamedSharding(stored.mesh, PartitionSpec(*(None if axis == FSDP else axis for axis in stored.spec)))


def check_batch(mesh: Mesh, batch_size: int, parts: int) -> None:
    """Refuse a batch that a mesh cannot take in ``parts``.

    Raises:
      ValueError: it does not divide.
    """
    shares = mesh.shape[DATA] * mesh.shape[FSDP]
    if batch_size % (shares * parts):
        raise ValueError(
            f"batch_size={batch_size} does not divide over {shares} devices (data x fsdp) and {parts} parts "
            "(train.accumulate); change one of them"
        )


def own_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, " b"]:
    """Which examples of a batch this process has to read, ascending.

    Raises:
      ValueError: ``tensor`` reaches across processes.
    """
    if mesh.shape[TENSOR] > jax.local_device_count():
        raise ValueError(
            f"the mesh's tensor axis is {mesh.shape[TENSOR]}, but a process has {jax.local_device_count()} devices; "
            "keep tensor inside a process"
        )
    slices = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices]))


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The batch of all processes, from the rows of this one (:func:`own_rows`)."""
    split = NamedSharding(mesh, BATCH)
    return {name: jax.make_array_from_process_local_data(split, rows) for name, rows in batch.items()}
