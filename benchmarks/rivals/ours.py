"""Our side of ``benchmarks/diffusion.py``: one case, served to that script."""

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

from e3d_jax import cameras
from e3d_jax.models import build, image_encoder, latents, stages
from e3d_jax.training import costs, plan, sharding, steps
from e3d_jax.training import state as state_lib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import random_weights

flags.DEFINE_enum("case", None, list(serving.CASES), "What to run.", required=True)
DTYPE = jnp.bfloat16 if jax.default_backend() in ("gpu", "tpu") else jnp.float32


def random_array(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    """Standard normal values; zeros would run faster than real data."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)


def apply(module: Any, *inputs: jax.Array) -> Any:
    """A module's result."""
    return module(*inputs)


def call_of(case: str, config) -> tuple[Any, tuple[Any, ...]]:
    """A function without a gradient, and its arguments."""
    objects, windows = flags.FLAGS.objects, serving.NUM_WINDOWS * flags.FLAGS.objects
    views, frames, size = cameras.NUM_ANCHORS + 1, cameras.WINDOW_FRAMES, config["size"]
    name = "interpolation" if case == "decode_windows" else "anchor"
    owner = build.provider(config, name, "autoencoder")
    shape = config[owner]["model"]
    side = build.latent_size(config, name)
    latent = (side, side, shape["latent_channels"])
    if case in ("anchor", "interpolation"):
        model = config[case]["model"]
        unet = random_weights.random_component(case, model, DTYPE).unet
        token = (1, model["unet"]["cross_attention_dim"])
    if case == "anchor":
        labels = jnp.broadcast_to(jnp.asarray(stages.anchor_labels())[:, None], (2, objects, views, 12))
        sample = random_array(2, objects, views, *latent[:2], model["unet"]["in_channels"])
        context = random_array(2, objects, views, *token)
        return apply, (unet, sample, jnp.full(objects, 500.0), context, labels)
    if case == "interpolation":
        labels = jnp.broadcast_to(jnp.asarray(stages.window_labels()), (windows, frames, 6))
        added = jnp.broadcast_to(jnp.asarray([7.0, 127.0, 0.02]), (windows, 3))
        sample = random_array(windows, frames, *latent[:2], model["unet"]["in_channels"])
        inputs = (unet, sample, jnp.full(windows, 1.0), random_array(windows, *token), added, labels)
        return apply, inputs
    if case == "image_encoder":
        arguments = config["interpolation"]["model"]["image_encoder"]
        encoder = random_weights.random_module(functools.partial(image_encoder.ImageEncoder, **arguments), DTYPE)
        return apply, (encoder, random_array(windows, *(encoder.image_size,) * 2, 3))
    module = random_weights.random_component(owner, shape, DTYPE)
    if case == "encode":
        images = random_array(serving.ENCODED * objects, size, size, shape["in_channels"])
        return latents.encode_in_turns, (module, images)
    count = (2 * objects, views - 1) if case == "decode" else (windows, serving.decoded_frames(shape))
    return latents.decode, (module, random_array(*count, *latent))


def prepare_call(case: str):
    """A case without a gradient."""
    function, inputs = call_of(case, flags.FLAGS.config.to_dict())
    # In its leaves: taking a module apart on the host takes milliseconds, which a sampler does once for all its steps.
    leaves, tree = jax.tree.flatten(inputs)
    call = jax.jit(lambda *leaves: function(*jax.tree.unflatten(tree, leaves)))
    start = time.perf_counter()
    operations = costs.count(call.trace(*leaves).jaxpr)
    compiled = call.lower(*leaves).compile()
    jax.block_until_ready(compiled(*leaves))
    facts = {"compile_seconds": time.perf_counter() - start, "operations": operations, "memory": memory_of(compiled)}
    return lambda: compiled(*leaves), facts, dict


def prepare_training(case: str):
    """A whole train step: gradient, clipping, AdamW, average."""
    stage = case.removesuffix("_train")
    size = flags.FLAGS.train_objects if stage == "anchor" else flags.FLAGS.train_windows
    config = flags.FLAGS.config.to_dict()
    config[stage]["train"] |= {"freeze": ("image_encoder",), "remat": "none"}
    config["mesh"] = {"data": 1, "fsdp": 1, "tensor": 1}
    mesh = sharding.make_mesh(config["mesh"], jax.devices()[:1])
    model = state_lib.build_module(config, stage, dtype=DTYPE)
    assembly = steps.assemble(config, stage, model, {}, mesh, DTYPE)
    state = state_lib.create(assembly.params, assembly.optimizer, assembly.stored)
    frozen = state_lib.place(assembly.frozen, assembly.frozen_stored)
    shapes = plan.example_shapes(config, stage, "latents")
    batch = {name: random_array(size, *shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    batch = {name: jnp.abs(x) if name in ("strength", "azimuth") else x for name, x in batch.items()}
    batch = sharding.global_batch({name: np.asarray(x) for name, x in batch.items()}, mesh)
    state, tree = jax.tree.flatten(state)
    rest, others = jax.tree.flatten((frozen, batch, jax.random.key(0), np.float32(1e-6)))

    # In its leaves, as above; a loop has that work done while the device is busy with the step before.
    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, rest):
        state, metrics = assembly.train_step(jax.tree.unflatten(tree, state), *jax.tree.unflatten(others, rest))
        return jax.tree.leaves(state), metrics

    start = time.perf_counter()
    operations = costs.count(step.trace(state, rest).jaxpr)
    compiled = step.lower(state, rest).compile()

    def run():
        nonlocal state
        state, metrics = compiled(state, rest)
        return metrics

    jax.block_until_ready(run())
    facts = {"compile_seconds": time.perf_counter() - start, "operations": operations, "memory": memory_of(compiled)}
    return run, facts, dict


def memory_of(compiled: Any) -> float:
    """Bytes that a program needs: arguments, results and all else; not what trying kernels took."""
    found = compiled.memory_analysis()
    parts = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return float(parts - found.alias_size_in_bytes)


def main(_) -> None:
    """Serves the case."""
    serving.serve(prepare_training if flags.FLAGS.case.endswith("_train") else prepare_call, jax.block_until_ready)


if __name__ == "__main__":
    serving.define_flags()
    app.run(main)
