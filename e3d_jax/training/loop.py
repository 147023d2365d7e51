"""The training loop of every stage; the file to fork.

Restore order: the run's own newest checkpoint, else the weights folder to start from, else fresh parameters. Frozen
components come from the weights folder of the same work directory, to which the finished stage adds its own; those
that it lacks come, and are copied, from the folder to start from.
"""

import contextlib
import functools
import gc
import itertools
import json
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from e3d_jax import files, settings
from e3d_jax.data import loader
from e3d_jax.models import build
from e3d_jax.training import checkpoints as checkpoints_lib
from e3d_jax.training import costs, heldout, losses, sharding, steps, watching
from e3d_jax.training import state as state_lib
from e3d_jax.weights import folder

# Settings that a run may be continued with other values of, because its results do not depend on them.
FREE = {"workers", "log_every", "checkpoint_every", "keep_last", "keep_every", "evaluate_every", "remat", "max_skipped"}
HELDOUT_BATCHES = 2


def train(
    stage: loader.Stage,
    config: Mapping[str, Any],
    workdir: str,
    records: Mapping[str, float],
    init: str | None = None,
    *,
    unseen: str | None = None,
    checkpoints: str | None = None,
    profile: tuple[int, int] | None = None,
) -> None:
    """Train one stage from records to weights; continues an unfinished run.

    SIGTERM saves the current step and returns; so does the notice that a machine of a pod is to be taken away.

    Args:
      stage: the component to train.
      config: a whole system's config as a plain dict (see configs/mini.py); this stage's section is used, the mesh,
        and the architecture of the frozen components.
      workdir: where ``<stage>/metrics.jsonl``, ``<stage>/tensorboard`` and ``weights`` are written.
      records: folders of record shards, each with its share of the examples.
      init: weights folder (or bundled weights) to start from, of the same architecture.
      unseen: folder of records to evaluate on every ``evaluate_every`` steps.
      checkpoints: where checkpoints go, local or ``gs://``; ``<workdir>/<stage>/checkpoints`` when not given.
      profile: first and last of the steps, counted from 1, whose trace is written to ``<stage>/profile``.

    Raises:
      ValueError: a setting cannot be trained with; the batch does not divide over the devices; the run or the folder to
        start from belongs to another config; no checkpoint can be read; many losses in a row are not finite.
      FileNotFoundError: no records, or a stage that must be trained first, or the one to start from, is missing.
      OSError: a checkpoint, metrics or the weights cannot be written.
    """
    # ---------------------------------------------------------------- run folder
    if "train" not in config[stage]:
        raise ValueError(f"the config does not say how to train the {stage}; import it, or take it from --init")
    training = dict(config[stage]["train"])
    settings.check(config)
    settings.check_training(stage, training)
    if profile and not 1 <= profile[0] <= profile[1] <= training["steps"]:
        raise ValueError(
            f"the steps to trace are {profile[0]} to {profile[1]}; expected some of 1 to {training['steps']}"
        )
    weights = pathlib.Path(workdir).resolve() / "weights"
    run = pathlib.Path(workdir).resolve() / stage
    with files.write_errors(run):
        run.mkdir(parents=True, exist_ok=True)
    identity = _check_same_run(run / "config.json", config, stage)

    # ---------------------------------------------------------------- devices and data
    mesh = sharding.make_mesh(config["mesh"])
    batch_size = training["batch_size"]
    sharding.check_batch(mesh, batch_size, training["accumulate"])
    rows = sharding.own_rows(mesh, batch_size).tolist()
    if training["freeze"] and not init:
        raise ValueError(f"{stage} does not train its {', '.join(training['freeze'])}; say with --init where they are")
    sizes = {"size": config["size"], "latent_size": build.latent_size(config, stage)}
    encoded = loader.holds_encoded(records, stage, **sizes)
    pictured = unseen is not None and not loader.holds_encoded([unseen], stage, **sizes)
    if encoded or (unseen is not None and not pictured):
        losses.check_encoded(stage, config[stage])
    # Not before the records are known to be good: its threads would outlive the message.
    kept = checkpoints_lib.Checkpoints(
        checkpoints or str(run / "checkpoints"), training["keep_last"], training["keep_every"]
    )

    # ---------------------------------------------------------------- modules
    dtype = "bfloat16" if jax.default_backend() in ("gpu", "tpu") else "float32"
    with state_lib.on_host():
        components, sources = {}, {}
        for role in losses.NEEDS[stage]:
            name = build.provider(config, stage, role)
            source = folder.resolve(init if init and not folder.has(weights, name) else weights)
            # Records of latents do without these, but pictures of unseen objects, and the finished system, do not.
            if pictured or not encoded:
                components[role] = state_lib.build_module(config, name, dtype=dtype)
                state_lib.load(source, name, config, components[role])
                sources[name] = source
            elif folder.has(source, name):
                state_lib.check_architecture(source, name, config)
                sources[name] = source
        model = state_lib.build_module(config, stage, dtype=dtype, seed=config["seed"])
        # Checkpoints lack what is not trained, so that it is read anew by a run that continues.
        if init and (training["freeze"] or not kept.steps):
            state_lib.load(folder.resolve(init), stage, config, model)
    assembly = steps.assemble(config, stage, model, components, mesh, dtype)
    train_step, rate = assembly.train_step, state_lib.learning_rate(training)
    frozen = state_lib.place(assembly.frozen, assembly.frozen_stored)

    # ---------------------------------------------------------------- state
    if restored := kept.restore(state_lib.like(assembly.params, assembly.optimizer, assembly.stored)):
        state, progress = restored
        if jax.process_index() == 0:
            print(f"{stage}: continuing after step {int(state.step)}")
    else:
        state = state_lib.create(assembly.params, assembly.optimizer, assembly.stored)
        progress = {"batches": 0, "recent": []}
    first, last = int(state.step), training["steps"]

    # ---------------------------------------------------------------- input and output
    load = functools.partial(loader.make_loader, stage=stage, batch_size=batch_size, rows=rows, seed=config["seed"])
    batches = load(records, workers=training["workers"], start=progress["batches"])
    evaluate = None
    if unseen:
        fixed = itertools.islice(load({unseen: 1.0}), HELDOUT_BATCHES)
        evaluate = heldout.Heldout(config, stage, assembly, mesh, fixed, pictured=pictured)
    writer = watching.Writer(run, first)
    stopping = _stop_signal()
    bar = tqdm.tqdm(total=last, initial=first, desc=stage, unit="step", disable=True if jax.process_index() else None)

    # ---------------------------------------------------------------- loop
    key = jax.jit(lambda: jax.random.key(config["seed"]), out_shardings=NamedSharding(mesh, PartitionSpec()))()
    rates = np.asarray(jax.vmap(rate)(jnp.arange(last)))
    recent, seen, operations = progress["recent"], [], None
    # A run that continues may have passed some of the steps to trace.
    traced = range(max(profile[0] - 1, first), profile[1]) if profile else range(0)
    timed, waited, since = 0, 0.0, time.perf_counter()
    with contextlib.ExitStack() as closing:
        # Whatever ends the run, what is being written is written whole; the last is closed first.
        for close in (bar.close, writer.close, batches.close, kept.close, gc.unfreeze):
            closing.callback(close)
        trace = closing.enter_context(contextlib.ExitStack())
        for step in range(first, last):
            if traced and step == traced[0]:
                trace.enter_context(jax.profiler.trace(str(run / "profile")))
            before = time.perf_counter()
            rows_read = _next(batches, records)
            seen.append(rows_read.pop("id"))
            batch = sharding.global_batch(rows_read, mesh)
            waited += time.perf_counter() - before
            if operations is None:
                operations = costs.count(train_step.trace(state, frozen, batch, key, rates[step]).jaxpr)
            state, metrics = train_step(state, frozen, batch, key, rates[step])
            recent.append(metrics)
            timed += 1
            if step == first:
                # Compiling is no part of a step's time.
                jax.block_until_ready(metrics)
                if jax.process_index() == 0:  # Not before: a start that failed leaves the folder to other settings.
                    files.write_atomically(run / "config.json", identity)
                _settle()
                timed, waited, since = 0, 0.0, time.perf_counter()
            # Batches of steps that the device has not begun must not fill its memory.
            jax.block_until_ready(recent[-3:-2])
            if traced and step == traced[-1]:
                jax.block_until_ready(metrics)
                trace.close()

            done = step + 1
            stop = stopping(done)
            if done % training["log_every"] == 0 or done == last:
                recent = _on_host(recent)
                now = time.perf_counter()
                mean = watching.mean(recent) | {"learning_rate": float(rates[step])}
                if timed:  # The first step alone tells no speed.
                    devices = mesh.devices.ravel().tolist()
                    mean |= watching.speed((now - since) / timed, waited / timed, batch_size, operations, devices)
                writer.write(done, mean)
                _check_finite(stage, done, recent, seen, training["max_skipped"], kept)
                bar.update(len(seen))
                bar.set_postfix(loss=f"{mean['loss']:.4f}")
                recent, seen, timed, waited, since = [], [], 0, 0.0, now
            if evaluate and (done % training["evaluate_every"] == 0 or done == last):
                scores, sheet = evaluate(state.ema, frozen)
                writer.write(done, scores)
                if sheet is not None:
                    writer.image(done, "heldout", sheet)
                _settle()
                timed, waited, since = 0, 0.0, time.perf_counter()
            if done % training["checkpoint_every"] == 0 or done == last or stop:
                recent = _on_host(recent)
                kept.save(done, state, {"batches": done, "recent": recent})
            if stop:
                break
        kept.finish()
    if int(state.step) < last:
        print(f"{stage}: stopped after step {int(state.step)} of {last}, which is saved; run again to continue")
        return

    # ---------------------------------------------------------------- weights
    module = steps.averaged(assembly, state, frozen)
    if jax.process_index() == 0:
        for name, source in sources.items():
            if source != weights:
                folder.write(weights, name, folder.read(source, name), config, folder.SHARD_BYTES)
        folder.save(weights, stage, module, config)
        print(f"{stage}: trained {last} steps; weights are in {weights}")


def _next(batches: Iterator[dict[str, Any]], records: Mapping[str, float]) -> dict[str, Any]:
    """The next batch."""
    try:
        return next(batches)
    except RuntimeError as error:  # As ArrayRecord and Grain have it.
        raise ValueError(
            f"{', '.join(records)}: a record cannot be read ({str(error).splitlines()[0]}); write that shard anew"
        ) from error


def _on_host(recent: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Metrics as plain numbers."""
    return [{name: float(value) for name, value in metrics.items()} for metrics in jax.device_get(recent)]


def _settle() -> None:
    """Leave out of Python's search for garbage what there is now, until ``gc.unfreeze``.

    What tracing left lives as long as the run, and looking through it takes as long as a step, again and again.
    """
    gc.collect()
    gc.freeze()


def _stop_signal() -> Callable[[int], bool]:
    """A function that tells whether to save and stop after a step; all processes get the same answer."""
    if jax.process_count() > 1:
        # JAX watches for SIGTERM in every process, and agrees on a step.
        return multihost_utils.reached_preemption_sync_point
    received = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: received.set())
    return lambda step: received.is_set()


def _check_finite(stage, step, recent, seen, limit, kept: checkpoints_lib.Checkpoints) -> None:
    """Refuse to go on when too many updates in a row were left out; names the first of these since the last row."""
    last = max(range(len(recent)), key=lambda i: recent[i]["skipped_in_a_row"])
    longest = int(recent[last]["skipped_in_a_row"])
    if longest < limit:
        return
    begin = step - len(recent) + last + 2 - longest
    ids = seen[max(0, last + 1 - longest - len(recent) + len(seen))]
    # Updates that were left out changed nothing, so that all checkpoints are good.
    good = f"the last good checkpoint is step {kept.steps[-1]}" if kept.steps else "there is no checkpoint"
    raise ValueError(
        f"{stage}: loss or gradient were not finite {longest} times in a row, from step {begin} on, with the records "
        f"{', '.join(map(str, ids[:8]))}; {good}; look at these records, or start another --workdir "
        "with a lower learning rate and --init=FOLDER of e3d_jax.training.export"
    )


def _check_same_run(path: pathlib.Path, config: Mapping[str, Any], stage: loader.Stage) -> bytes:
    """What a run's results depend on, as JSON to be kept with it; a run that continues must have the same."""
    # Where the rate does not follow a plan, a run may be made longer.
    free = FREE | {"steps"} if config[stage]["train"]["decay"] == "constant" else FREE
    tied = lambda section: section | {"train": {k: v for k, v in section["train"].items() if k not in free}}  # noqa: E731
    here = tied({"seed": config["seed"], "size": config["size"], **config[stage]})
    if path.exists() and (different := settings.unlike(tied(json.loads(path.read_text())), here)):
        raise ValueError(
            f"{path.parent} holds a run of another config: {different[0]}; give that, choose another --workdir, or "
            "delete that folder"
        )
    return json.dumps(here, indent=2, sort_keys=True).encode()
