"""Where arrays go, and results that do not depend on it."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import layout

from e3d_jax import config as config_lib
from e3d_jax import stages
from e3d_jax.training import sharding, state, steps
from tests import tiny

MESHES = (
    {"data": 4, "fsdp": 1, "tensor": 1},
    {"data": 2, "fsdp": 2, "tensor": 1},
    {"data": 1, "fsdp": 2, "tensor": 2},
)


@dataclasses.dataclass(frozen=True)
class Device:
    """As much of an accelerator as its place in a mesh depends on."""

    id: int
    process_index: int
    slice_index: int
    device_kind: str
    platform: str
    coords: tuple[int, int, int] = (0, 0, 0)
    core_on_chip: int = 0


def test_an_axis_may_take_part_of_a_row_of_chips():
    chips = [Device(i, i // 4, 0, "TPU v6 lite", "tpu", (i % 16, i // 16, 0)) for i in range(256)]
    assert sharding.arrange((8, 32, 1), chips).shape == (8, 32, 1)


def _mesh(sizes, devices=None):
    return sharding.make_mesh(config_lib.MeshSettings(**sizes), devices)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_batches_alone(hosts):
    gpus = [Device(i, i // 4, i // 4, "NVIDIA H200", "gpu") for i in range(4 * hosts)]
    arranged = sharding.arrange((2 * hosts, 2, 1), gpus)
    assert all(one.slice_index == other.slice_index for one, other in arranged[..., 0])


def test_a_mesh_that_hosts_cannot_share_evenly_keeps_their_order():
    gpus = [Device(i, i // 4, i // 4, "NVIDIA H200", "gpu") for i in range(8)]
    assert [device.id for device in sharding.arrange((1, 8, 1), gpus).flat] == list(range(8))


@pytest.mark.parametrize("split", [None, "fsdp"])
def test_the_gradient_of_a_kernel_comes_in_the_order_of_the_kernel(split):
    mesh = _mesh({"data": 1, "fsdp": 2, "tensor": 1}, jax.devices()[:2])
    stored = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, None, None, split))

    def loss(kernel, weights):  # As cuDNN does, the sum goes over its kernel in another order.
        return (sharding.gathered(kernel, jnp.float32, stored).transpose(3, 0, 1, 2) * weights).sum()

    gradient = jax.jit(jax.grad(loss), out_shardings=layout.Format(layout.Layout.AUTO))
    compiled = gradient.lower(*(jax.ShapeDtypeStruct(x, jnp.float32) for x in ((3, 3, 8, 4), (4, 3, 3, 8)))).compile()
    assert compiled.output_formats.layout.major_to_minor == (0, 1, 2, 3)


def _spec(name, shape, sizes):
    tree = {}
    *folders, last = name.split(".")
    inner = tree
    for folder in folders:
        inner = inner.setdefault(folder, {})
    inner[last] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return tuple(jax.tree.leaves(sharding.shardings(tree, _mesh(sizes), config_lib.RULES))[0].spec)


@pytest.mark.parametrize(
    "name, shape, spec",
    [
        ("attn1.to_q.kernel", (8, 16), ("fsdp", "tensor")),
        ("attn1.to_out.kernel", (16, 8), ("tensor", "fsdp")),
        ("ff_normal.proj.kernel", (8, 16), ("fsdp", "tensor")),
        ("mlp.fc2.kernel", (16, 8), ("tensor", "fsdp")),
        ("conv1.kernel", (3, 3, 8, 16), (None, None, None, "fsdp")),
        ("conv_out.kernel", (3, 3, 8, 3), (None, None, "fsdp", None)),  # three channels do not divide by two
        ("norm1.scale", (8,), (None,)),
    ],
)
def test_parameters_are_split_by_the_kind_of_their_layer(name, shape, spec):
    assert _spec(name, shape, {"data": 1, "fsdp": 2, "tensor": 2}) == spec


def test_axes_of_one_device_split_nothing():
    assert _spec("attn1.to_q.kernel", (8, 16), {"data": 4, "fsdp": 1, "tensor": 1}) == (None, None)


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 3, "fsdp": 1, "tensor": 1},
        {"data": -1, "fsdp": -1, "tensor": 1},
        {"data": 0, "fsdp": 1, "tensor": 1},
        {"data": 2, "fsdp": 1, "tensor": 1},
    ],
)
def test_a_mesh_must_fit_the_devices(sizes):
    with pytest.raises(ValueError, match=r"mesh|number of devices"):
        _mesh(sizes)


def test_the_rest_of_the_devices_goes_where_asked():
    assert dict(_mesh({"data": -1, "fsdp": 2, "tensor": 1}).shape) == {"data": 2, "fsdp": 2, "tensor": 1}


@pytest.mark.parametrize(
    "given, num_devices, fitting",
    [
        ((2, 4, 1), 8, (2, 4, 1)),
        ((2, 4, 1), 4, (1, 4, 1)),  # Copies go first.
        ((2, 4, 1), 6, (2, 3, 1)),
        ((-1, 8, 1), 4, (1, 4, 1)),
        ((-1, 4, 2), 16, (2, 4, 2)),
        ((1, 2, 2), 3, (3, 1, 1)),
        ((1, 2, 2), 6, (3, 1, 2)),
        ((1, -1, 2), 3, (1, 3, 1)),
    ],
)
def test_a_mesh_is_refitted_to_the_devices_that_are_left(given, num_devices, fitting):
    sizes = config_lib.MeshSettings(**dict(zip(sharding.AXES, given, strict=True)))
    devices = [Device(i, 0, 0, "NVIDIA H200", "gpu") for i in range(num_devices)]
    mesh = sharding.make_mesh(sharding.refit(sizes, num_devices), devices)
    assert tuple(mesh.shape.values()) == fitting


def test_a_rule_must_name_known_axes():
    mesh = _mesh(MESHES[0])
    with pytest.raises(ValueError, match="'haeds' to 'tensor'"):
        sharding.shardings({}, mesh, (("haeds", "tensor"),))


def test_one_process_reads_the_whole_batch():
    np.testing.assert_array_equal(sharding.own_rows(_mesh(MESHES[2]), 8), np.arange(8))


def _config(optimizer):
    values = tiny.system_values() | {"size": 32}
    values["autoencoder"]["model"]["kl"]["block_out_channels"] = (4, 4, 4, 4)  # Latents of 4 x 4.
    anchor = values["anchor"]
    unet = {"block_out_channels": (8,), "heads": 2, "norm_groups": 4, "cross_attention_dim": 8}
    anchor["model"]["unet"] |= unet
    encoder = {"image_size": 8, "patch_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_layers": 1, "heads": 2}
    anchor["model"]["image_encoder"] |= encoder | {"projection_dim": 8}
    anchor["train"] |= {"warmup_steps": 0, "optimizer": optimizer}
    return stages.parse_config(values)


def _random(rng, spec, size):
    """Return random arrays in the shapes of a batch."""

    def fill(x):
        shape = (size, *x.shape)
        whole = np.issubdtype(x.dtype, np.integer)
        return np.ones(shape, x.dtype) if whole else rng.standard_normal(shape, np.float32)

    return jax.tree.map(fill, spec)


@functools.cache
def _run(optimizer, **sizes):
    """Losses and parameters of five steps of a small anchor stage."""
    config = _config(optimizer)
    mesh = _mesh(sizes, jax.devices()[: np.prod(list(sizes.values()))])
    model = state.build_module(config, "anchor", dtype="float32", seed=1)
    assembly = steps.assemble(config, "anchor", model, {}, mesh, "float32")
    now = state.create(assembly.params, assembly.optimizer, assembly.stored)
    frozen = state.place(assembly.frozen, assembly.frozen_stored)
    rng, spec = np.random.default_rng(0), stages.get("anchor").sources["latents"].spec(config)
    found = []
    for _ in range(5):
        batch = sharding.global_batch(_random(rng, spec, 8), mesh)
        now, metrics = assembly.train_step(now, frozen, batch, jax.random.key(0), 1e-3)
        found.append(float(metrics["loss"]))
    return found, np.concatenate([np.ravel(x) for x in jax.tree.leaves(now.params)]), now


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "sizes"),
    [("adamw", sizes) for sizes in (*MESHES, {"data": 1, "fsdp": 2, "tensor": 1})]
    + [("muon", sizes) for sizes in MESHES[1:]],
)
def test_a_run_does_not_depend_on_the_mesh(optimizer, sizes):
    alone, found = _run(optimizer, data=1, fsdp=1, tensor=1), _run(optimizer, **sizes)
    np.testing.assert_allclose(found[0], alone[0], rtol=1e-5)
    assert np.linalg.norm(found[1] - alone[1]) < 1e-5 * np.linalg.norm(alone[1])


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "count"), [("adamw", 2), ("muon", 1)])
def test_the_optimizer_state_is_split_as_parameters_are(optimizer, count):
    sizes = MESHES[1]
    leaves = jax.tree_util.tree_leaves_with_path(_run(optimizer, **sizes)[2].optimizer_state)
    name = re.compile(r"mid_block.*attentions.*proj_in.*kernel")
    kernels = [leaf for path, leaf in leaves if name.search(jax.tree_util.keystr(path))]
    assert len(kernels) == count
    for kernel in kernels:
        assert kernel.addressable_shards[0].data.size * sizes["fsdp"] == kernel.size
