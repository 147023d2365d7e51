"""Our side of ``benchmarks/diffusion.py``: one case, served to that script."""

import dataclasses
import functools
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import serving
from absl import app, flags

from e3d_jax import config as config_lib
from e3d_jax import stages
from e3d_jax.models import image_encoder, latents
from e3d_jax.stages import conditions
from e3d_jax.training import costs, sharding, steps
from e3d_jax.training import state as state_lib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import random_weights

flags.DEFINE_enum("case", None, list(serving.CASES), "What to run.", required=True)
DTYPE = jnp.bfloat16 if jax.default_backend() in ("gpu", "tpu") else jnp.float32


def random_array(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    """Return standard normal values; zeros would run faster than real data."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)


def apply(module: Any, *inputs: jax.Array) -> Any:
    """Call a module."""
    return module(*inputs)


def read_config() -> config_lib.SystemConfig:
    """Return the config of ``--config``."""
    return stages.parse_config(flags.FLAGS.config.to_dict())


def call_of(case: str, config: config_lib.SystemConfig) -> tuple[Any, tuple[Any, ...]]:
    """Return a function without a gradient, and its arguments."""
    layout = config.layout
    objects, windows = flags.FLAGS.objects, len(layout.windows) * flags.FLAGS.objects
    views, frames = layout.num_anchors, layout.window_frames
    name = "interpolation" if case == "decode_windows" else "anchor"
    owner, side = config.provider(name, "autoencoder"), config.latent_size(name)
    shape = config.autoencoder(name)
    latent = (side, side, shape.latent_channels)
    poses = np.asarray(layout.cameras(1).world_from_cam)
    if case in ("anchor", "interpolation"):
        spec = config[case].model.network
        network = random_weights.random_component(config, case, DTYPE).network
        token = (1, spec.cross_attention_dim)
    if case == "anchor":
        anchors = np.repeat(poses[None, layout.anchors], objects, 0)
        labels = jnp.asarray(conditions.view_labels(anchors, anchors[:, :1]))
        sample = random_array(objects, 2, views + 1, *latent[:2], spec.in_channels)
        context = random_array(objects, 2, views + 1, *token)
        return apply, (network, sample, jnp.full(objects, 500.0), context, labels)
    if case == "interpolation":
        labels = jnp.asarray(conditions.frame_labels(np.tile(poses[layout.windows], (objects, 1, 1, 1))))
        added = jnp.broadcast_to(jnp.asarray([7.0, 127.0, 0.02]), (windows, 3))
        sample = random_array(windows, frames, *latent[:2], spec.in_channels)
        inputs = (network, sample, jnp.full(windows, 1.0), random_array(windows, *token), added, labels)
        return apply, inputs
    if case == "image_encoder":
        spec = config["interpolation"].model.image_encoder
        encoder = random_weights.random_module(functools.partial(image_encoder.ImageEncoder, spec), DTYPE)
        return apply, (encoder, random_array(windows, *(encoder.image_size,) * 2, 3))
    module = random_weights.random_component(config, owner, DTYPE)
    if case == "encode":
        images = random_array((2 + views) * objects, config.size, config.size, shape.in_channels)
        return latents.encode_in_turns, (module, images)
    count = (2 * objects, views) if case == "decode" else (windows, serving.decoded_frames(config))
    return latents.decode, (module, random_array(*count, *latent))


def prepare_call(case: str):
    """Prepare a case without a gradient."""
    function, inputs = call_of(case, read_config())
    # As leaves: flattening a module on the host takes milliseconds, which a sampler does once for all its steps.
    leaves, tree = jax.tree.flatten(inputs)
    call = jax.jit(lambda *leaves: function(*jax.tree.unflatten(tree, leaves)))
    start = time.perf_counter()
    operations = costs.count_flops(call.trace(*leaves).jaxpr)
    compiled = call.lower(*leaves).compile()
    jax.block_until_ready(compiled(*leaves))
    facts = {"compile_seconds": time.perf_counter() - start, "operations": operations, "memory": memory_of(compiled)}
    return lambda: compiled(*leaves), facts, dict


def _for_training(config: config_lib.SystemConfig, stage: str) -> config_lib.SystemConfig:
    """Return a config that trains on one device, without its image encoder and without rematerialization."""
    values = config.to_dict()
    values[stage]["train"] |= {"freeze": ("image_encoder",), "remat": "none"}
    values["mesh"] = {"data": 1, "fsdp": 1, "tensor": 1}
    return stages.parse_config(values)


def prepare_training(case: str):
    """Prepare a whole train step: gradient, clipping, AdamW, EMA."""
    stage = case.removesuffix("_train")
    size = flags.FLAGS.train_objects if stage == "anchor" else flags.FLAGS.train_windows
    config = _for_training(read_config(), stage)
    mesh = sharding.make_mesh(config.system.mesh, jax.devices()[:1])
    model = state_lib.build_module(config, stage, dtype=DTYPE)
    assembly = steps.assemble(config, stage, model, {}, mesh, DTYPE)
    state = state_lib.create(assembly.params, assembly.optimizer, assembly.stored)
    frozen = state_lib.place(assembly.frozen, assembly.frozen_stored)
    row = stages.get(stage).sources["latents"].spec(config)
    batch = jax.tree.map(lambda x: np.asarray(random_array(size, *x.shape, dtype=x.dtype)), row)
    if stage == "interpolation":
        batch = dataclasses.replace(batch, strength=np.abs(batch.strength))
    batch = sharding.global_batch(batch, mesh)
    state, tree = jax.tree.flatten(state)
    rest, others = jax.tree.flatten((frozen, batch, jax.random.key(0), np.float32(1e-6)))

    # As leaves, as above; a loop does that work while the device is busy with the previous step.
    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, rest):
        state, metrics = assembly.train_step(jax.tree.unflatten(tree, state), *jax.tree.unflatten(others, rest))
        return jax.tree.leaves(state), metrics

    start = time.perf_counter()
    operations = costs.count_flops(step.trace(state, rest).jaxpr)
    compiled = step.lower(state, rest).compile()

    def run():
        nonlocal state
        state, metrics = compiled(state, rest)
        return metrics

    jax.block_until_ready(run())
    facts = {"compile_seconds": time.perf_counter() - start, "operations": operations, "memory": memory_of(compiled)}
    return run, facts, dict


def memory_of(compiled: Any) -> float:
    """Return the bytes that a program needs: arguments, results and temporaries, without those of autotuning."""
    found = compiled.memory_analysis()
    parts = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return float(parts - found.alias_size_in_bytes)


def main(_) -> None:
    """Serve the case."""
    serving.serve(prepare_training if flags.FLAGS.case.endswith("_train") else prepare_call, jax.block_until_ready)


if __name__ == "__main__":
    serving.define_flags()
    app.run(main)
