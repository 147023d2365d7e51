"""The training loop of every stage; the file to fork.

Restore order: the run's own newest checkpoint, else fresh parameters. Frozen components come from the weights folder of
the same work directory, to which the finished stage adds its own.
"""

import functools
import json
import pathlib
import time
from typing import Any

import grain
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import tqdm
from absl import logging
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from e3d_jax import files
from e3d_jax.data import loader
from e3d_jax.models import build
from e3d_jax.training import steps
from e3d_jax.weights import folder


def learning_rate(peak: float, warmup: int, num_steps: int) -> optax.Schedule:
    """Linear warm-up, then half a cosine to zero."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, min(warmup, num_steps // 2), num_steps)


def train(stage: loader.Stage, config: dict[str, Any], workdir: str, records: str) -> None:
    """Train one stage from records to weights; continues an unfinished run.

    Args:
      stage: the component to train.
      config: a whole system's config as a plain dict (see configs/mini.py); this stage's section is used, and the
        architecture of the frozen components.
      workdir: where ``<stage>/checkpoints``, ``<stage>/metrics.jsonl`` and ``weights`` are written.
      records: folder of record shards.

    Raises:
      ValueError: the batch does not divide over the devices; the run belongs to another config; a loss is not finite.
      FileNotFoundError: no records, or a stage that must be trained first is missing.
    """
    # ---------------------------------------------------------------- run folder
    weights = pathlib.Path(workdir).resolve() / "weights"
    run = pathlib.Path(workdir).resolve() / stage
    run.mkdir(parents=True, exist_ok=True)
    settings = dict(config[stage]["train"])
    _check_same_config(run / "config.json", config[stage])

    # ---------------------------------------------------------------- devices and data
    mesh = Mesh(np.array(jax.devices()), (steps.DATA,))
    if settings["batch_size"] % mesh.size:
        raise ValueError(f"{stage}: batch_size={settings['batch_size']} does not divide over {mesh.size} devices")
    replicated, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(steps.DATA))
    batches = loader.make_loader(
        records,
        stage,
        batch_size=settings["batch_size"] // jax.process_count(),
        seed=config["seed"],
        workers=settings["workers"],
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )

    # ---------------------------------------------------------------- modules
    dtype = "bfloat16" if jax.default_backend() in ("gpu", "tpu") else "float32"
    frozen, frozen_graphs = {}, {}
    for role in steps.NEEDS[stage]:
        name = build.provider(config, stage, role)
        module = build.build(name, config[name]["model"], dtype=dtype, rngs=nnx.Rngs(0))
        folder.load(folder.resolve(weights), name, module)
        frozen_graphs[role], frozen[role] = nnx.split(module)
    frozen = jax.device_put(frozen, replicated)
    model = build.build(stage, config[stage]["model"], dtype=dtype, rngs=nnx.Rngs(config["seed"]))
    graph, params = nnx.split(model, nnx.Param)

    # ---------------------------------------------------------------- optimiser and state
    rate = learning_rate(settings["learning_rate"], settings["warmup"], settings["steps"])
    optimizer = optax.chain(
        optax.clip_by_global_norm(settings["clip"]),
        optax.scale_by_adam(b1=0.9, b2=settings["beta2"]),
        optax.add_decayed_weights(settings["weight_decay"], mask=_matrices),
    )
    state = steps.TrainState(
        jax.numpy.zeros((), int), params, jax.tree.map(jax.numpy.copy, params), optimizer.init(params)
    )
    state = jax.device_put(state, replicated)
    loss = functools.partial(steps.LOSSES[stage], **config[stage]["loss"])
    train_step = steps.make_train_step(graph, frozen_graphs, loss, optimizer, mesh, settings["ema"])

    # ---------------------------------------------------------------- restore
    checkpoints = ocp.CheckpointManager(run / "checkpoints", options=ocp.CheckpointManagerOptions(max_to_keep=2))
    if (latest := checkpoints.latest_step()) is not None:
        kept = ocp.args.Composite(
            state=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, state)),
            data=grain.checkpoint.CheckpointRestore(batches),
        )
        state = checkpoints.restore(latest, args=kept)["state"]
        logging.info("%s: continuing from step %d", stage, latest)

    # ---------------------------------------------------------------- loop
    key = jax.random.key(config["seed"])
    first, last = int(state.step), settings["steps"]
    bar = tqdm.tqdm(total=last, initial=first, desc=stage, unit="step", mininterval=5)
    waited, since, recent = 0.0, time.perf_counter(), []
    with open(run / "metrics.jsonl", "a") as log:
        for step in range(first, last):
            before = time.perf_counter()
            batch = jax.tree.map(functools.partial(jax.make_array_from_process_local_data, split), next(batches))
            waited += time.perf_counter() - before
            state, metrics = train_step(state, frozen, batch, key, rate(step))
            recent.append(metrics)
            if (step + 1) % settings["log_every"] == 0 or step + 1 == last:
                mean = {k: float(np.mean([m[k] for m in jax.device_get(recent)])) for k in metrics}
                if not np.isfinite(mean["loss"]):
                    raise ValueError(
                        f"{stage}: the loss is {mean['loss']} near step {step + 1}; lower the learning rate"
                    )
                now = time.perf_counter()
                mean |= {"step": step + 1, "time/step_ms": 1e3 * (now - since) / len(recent)}
                mean |= {"time/input_ms": 1e3 * waited / len(recent), "learning_rate": float(rate(step))}
                log.write(json.dumps(mean) + "\n")
                log.flush()
                bar.update(len(recent))
                bar.set_postfix(loss=f"{mean['loss']:.4f}")
                waited, since, recent = 0.0, now, []
            if (step + 1) % settings["checkpoint_every"] == 0 or step + 1 == last:
                items = ocp.args.Composite(
                    state=ocp.args.StandardSave(state), data=grain.checkpoint.CheckpointSave(batches)
                )
                checkpoints.save(step + 1, args=items)
    bar.close()
    checkpoints.wait_until_finished()

    # ---------------------------------------------------------------- weights
    if jax.process_index() == 0:
        folder.save(weights, stage, nnx.merge(graph, state.ema), config)
        print(f"{stage}: trained {last} steps; weights are in {weights}")


def _matrices(params):
    """Weight decay acts on matrices and kernels, not on biases and norms."""
    return jax.tree.map(lambda x: x.ndim > 1, params)


def _check_same_config(path: pathlib.Path, section: dict[str, Any]) -> None:
    """Save this stage's section of the config with the run, or compare with what the run was started with."""
    text = json.dumps(section, indent=2, sort_keys=True)
    if path.exists() and path.read_text() != text:
        raise ValueError(f"{path.parent} holds a run of another config; choose another --workdir or delete that folder")
    files.write_atomically(path, text.encode())
