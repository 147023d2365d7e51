"""The training loop of every stage; the file to fork.

Order of restoring: the run's own newest checkpoint, else the weights folder to start from, else fresh parameters.
Frozen components come from the weights folder of the same work directory, to which the finished stage is added; those
that it lacks come, and are copied, from the folder to start from.
"""

import contextlib
import gc
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from e3d_jax import config as config_lib
from e3d_jax import distributed, stages, stores
from e3d_jax.data import loader
from e3d_jax.training import checkpoints as checkpoints_lib
from e3d_jax.training import costs, evaluators, goodput, lock, metrics, runs, sharding, steps, timing, writers
from e3d_jax.training import state as state_lib
from e3d_jax.weights import adapters, folder


def train(
    config: config_lib.SystemConfig,
    stage: str,
    workdir: str,
    datasets: Mapping[str, float],
    init: str | None = None,
    *,
    heldout: str | None = None,
    checkpoints: str | None = None,
    profile: tuple[int, int] | None = None,
    loggers: Sequence[str] = writers.DEFAULT,
) -> None:
    """Train a stage from records to weights; continue an unfinished run.

    SIGTERM saves the current step and returns, and so does the notice that a machine of a pod will be preempted.

    Args:
      config: of the whole system.
      stage: the component to train.
      workdir: where ``<stage>/metrics.jsonl``, ``<stage>/tensorboard`` and ``weights`` are written.
      datasets: folders of record shards, with the weight of each in the mixture.
      init: weights folder (or bundled weights) of the same architecture to start from.
      heldout: dataset to evaluate on every ``evaluate_every`` steps.
      checkpoints: where checkpoints go, local or ``gs://``; ``<workdir>/<stage>/checkpoints`` when not given.
      profile: first and last of the steps, counted from 1, whose trace is written to ``<stage>/profile``.
      loggers: where metrics go, keys of :data:`e3d_jax.training.writers.WRITERS`.

    Raises:
      ValueError: see :func:`e3d_jax.training.runs.check_run`; another process trains in the same folder; the batch does
        not divide over the devices; no checkpoint can be read; more records are damaged than may be skipped; too many
        consecutive losses are not finite.
      FileNotFoundError: see :func:`e3d_jax.training.runs.check_run`.
      OSError: a checkpoint, metrics or the weights cannot be written.
    """
    writers.check(loggers)
    run = runs.check_run(
        config, stage, workdir, datasets, init, heldout=heldout, checkpoints=checkpoints, profile=profile
    )
    sizes = config.system.mesh
    if run.begun and (sizes := sharding.refit(sizes, jax.device_count())) != config.system.mesh:
        _print(f"{stage}: continuing on a mesh of fsdp={sizes.fsdp} and tensor={sizes.tensor}, which fits the devices")
    mesh = sharding.make_mesh(sizes)
    sharding.check_batch(mesh, config.training(stage).batch_size, config.training(stage).grad_accum_steps)
    run.create_folder()
    with lock.hold(run.folder):
        _train(
            config,
            stage,
            run,
            mesh,
            datasets,
            init,
            heldout=heldout,
            checkpoints=checkpoints,
            profile=profile,
            loggers=loggers,
        )


def _train(
    config: config_lib.SystemConfig,
    stage: str,
    run: runs.Run,
    mesh: Mesh,
    datasets: Mapping[str, float],
    init: str | None,
    *,
    heldout: str | None,
    checkpoints: str | None,
    profile: tuple[int, int] | None,
    loggers: Sequence[str],
) -> None:
    """Train a run that passed all checks, in a folder that this process holds; arguments as in :func:`train`."""
    stopwatch = timing.Stopwatch("start")
    settings, seed = config.training(stage), config.system.seed
    own_rows = sharding.own_rows(mesh, settings.batch_size).tolist()

    with contextlib.ExitStack() as closing:
        # Whatever ends the run, what is being written is completed; what was opened last is closed first.
        saved = checkpoints_lib.Checkpoints(
            checkpoints or str(run.folder / "checkpoints"), settings.keep_last, settings.keep_every
        )
        closing.callback(saved.close)

        # ---------------------------------------------------------------- modules and state
        # Checkpoints lack what is not trained, so a run that continues reads it again.
        fill = bool(init) and (bool(settings.untrained) or not saved.steps)
        dtype = distributed.compute_dtype()
        model, components = _make_modules(config, stage, run, init if fill else None, dtype)
        assembly = steps.assemble(config, stage, model, components, mesh, dtype)
        frozen = state_lib.place(assembly.frozen, assembly.frozen_stored)
        if restored := saved.restore(state_lib.like(assembly.params, assembly.optimizer, assembly.stored)):
            state, progress = restored
            _print(f"{stage}: continuing after step {int(state.step)}")
        else:
            state = state_lib.create(assembly.params, assembly.optimizer, assembly.stored)
            progress = {"batches": 0, "recent": []}
        first, last = int(state.step), settings.steps

        # ---------------------------------------------------------------- input and output
        batches: Any = loader.make_loader(
            datasets,
            stages.get(stage).sources[run.kind],
            config,
            batch_size=settings.batch_size,
            seed=seed,
            workers=settings.loader_workers,
            rows=own_rows,
            start=progress["batches"],
            max_bad_records=settings.max_bad_records,
        )
        closing.callback(batches.close)
        evaluations = evaluators.make_evaluators(config, stage, assembly, mesh, heldout, run.heldout_kind)
        record = goodput.Record(run.folder, first, stopwatch)
        outputs = writers.make_writers(run.folder, first, loggers)
        for writer in outputs:
            closing.callback(writer.close)
        profiler = timing.Profiler(run.folder / "profile", profile, first)
        closing.callback(profiler.close)
        bar = tqdm.tqdm(total=last, initial=first, desc=stage, unit="step", disable=jax.process_index() > 0 or None)
        closing.callback(bar.close)

        # ---------------------------------------------------------------- loop
        key = jax.jit(lambda: jax.random.key(seed), out_shardings=NamedSharding(mesh, PartitionSpec()))()
        rates = np.asarray(jax.vmap(state_lib.learning_rate(settings))(jnp.arange(last)))
        stop_after = _stop_signal()
        recent, flops = metrics.MetricsBuffer(progress["recent"]), 0.0
        closing.callback(gc.unfreeze)
        for step in range(first + 1, last + 1):
            profiler.begin_step(step)
            # The loader's first batch takes as long as starting it.
            with stopwatch.spending("input" if step > first + 1 else "start"):
                ids, rows = _next(batches, datasets)
                batch = sharding.global_batch(rows, mesh)
            if step == first + 1:
                stopwatch.switch("compile")
                bar.set_postfix_str("compiling")
                traced = assembly.train_step.trace(state, frozen, batch, key, rates[step - 1])
                flops = costs.count_flops(traced.jaxpr)
            state, step_metrics = assembly.train_step(state, frozen, batch, key, rates[step - 1])
            recent.add(step_metrics, ids)
            if step > first + 1:
                stopwatch.step()
            else:
                jax.block_until_ready(step_metrics)
                if jax.process_index() == 0:
                    # Not earlier: a start that failed leaves the folder to other settings.
                    run.write_identity()
                _freeze_garbage()
                stopwatch.switch("compute")
            recent.limit_queue()
            profiler.end_step(step, step_metrics)

            stop = stop_after(step)
            if step % settings.log_every == 0 or step == last:
                row = metrics.mean(recent.fetch()) | {"learning_rate": float(rates[step - 1])}
                if settings.max_bad_records:
                    row["bad_records"] = float(distributed.total(batches.num_bad))
                if lap := stopwatch.lap():  # A first step alone has no speed.
                    row |= timing.throughput(lap, settings.batch_size, flops, mesh.devices.ravel().tolist())
                for writer in outputs:
                    writer.write(step, row)
                recent.check_finite(stage, step, settings.max_consecutive_skips, saved.steps)
                bar.update(recent.num_added)
                bar.set_postfix(loss=f"{row['loss']:.4f}")
                recent.clear()
                record.write(step)
            for evaluate in evaluations:
                if step % evaluate.every == 0 or step == last:
                    jax.block_until_ready(step_metrics)
                    with stopwatch.spending("evaluation"):
                        scores, images = evaluate(step, state.ema, frozen)
                        for writer in outputs:
                            writer.write(step, scores)
                            for name, image in images.items():
                                writer.image(step, name, image)
                        _freeze_garbage()
            if step % settings.checkpoint_every == 0 or step == last or stop:
                progress = {"batches": step, "recent": recent.fetch()}
                with stopwatch.spending("checkpoint"):
                    # A run that continues after this step does not write the rows before it again.
                    stores.send(run.folder.parent)
                    saved.save(step, state, progress)
            if stop:
                break
        with stopwatch.spending("checkpoint"):
            saved.finish()
        if last > first:
            record.write(int(state.step), complete=int(state.step) == last)
            for writer in outputs:
                writer.write(int(state.step), goodput.summary(record.attempts))
    if int(state.step) < last:
        print(f"{stage}: stopped after step {int(state.step)} of {last}, which is saved; run again to continue")
        return

    # ---------------------------------------------------------------- weights
    module = steps.ema_module(assembly, state, frozen)
    if jax.process_index() == 0:
        for name, source in run.components.values():
            if source != run.weights:
                folder.write(run.weights, name, folder.read(source, name), config, folder.SHARD_BYTES)
        folder.save(run.weights, stage, module, config)
        if settings.lora.rank:
            adapters.write(run.folder / "lora" / adapters.FILE, stage, jax.device_get(state.ema))
    _print(f"{stage}: trained {last} steps; weights are in {run.weights}")


def _make_modules(
    config: config_lib.SystemConfig, stage: str, run: runs.Run, init: str | None, dtype: Any
) -> tuple[nnx.Module, dict[str, nnx.Module]]:
    """Return the module to train, filled from ``init`` if given, and the frozen components by role, if needed."""
    components = {}
    with state_lib.on_host():
        for role, (name, source) in run.components.items() if run.uses_components else ():
            components[role] = state_lib.build_module(config, name, dtype=dtype)
            folder.load(source, name, components[role])
        model = state_lib.build_module(config, stage, dtype=dtype, seed=config.system.seed)
        if init:
            state_lib.load(folder.resolve(init), stage, config, model)
    return model, components


def _next(batches: Iterator[tuple[Any, Any]], datasets: Mapping[str, float]) -> tuple[Any, Any]:
    """Return the ids of the next batch, and the batch."""
    try:
        return next(batches)
    except RuntimeError as error:  # What ArrayRecord and Grain raise.
        raise ValueError(
            f"{', '.join(datasets)}: a record cannot be read ({str(error).splitlines()[0]}); write that shard again"
        ) from error


def _print(message: str) -> None:
    """Print once per run, not once per process."""
    if jax.process_index() == 0:
        print(stores.named(message))


def _freeze_garbage() -> None:
    """Exclude all objects that exist now from Python's garbage collection, until ``gc.unfreeze``.

    What tracing leaves behind lives as long as the run, and every collection would take as long as a step to look
    through it.
    """
    gc.collect()
    gc.freeze()


def _stop_signal() -> Callable[[int], bool]:
    """Return a function that says whether to save and stop after a step; all processes get the same answer."""
    if jax.process_count() > 1:
        # JAX watches for SIGTERM in every process, and lets all agree on a step.
        return multihost_utils.reached_preemption_sync_point
    received = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: received.set())
    return lambda step: received.is_set()
