"""Scores of a run's checkpoints while it trains, by a process of its own that only reads what the run writes.

Every checkpoint gets a folder ``OUT/<step>`` of the benchmark (:mod:`e3d_jax.benchmark`) with a file per object, and
its mean scores become a row of the same writers that training has. What is there is not scored again.
"""

import contextlib
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator, Sequence

from e3d_jax import benchmark, files, stages
from e3d_jax import config as config_lib
from e3d_jax.training import checkpoints as checkpoints_lib
from e3d_jax.training import export, state, writers
from e3d_jax.weights import folder

# Seconds between two looks for a new checkpoint.
INTERVAL = 20.0
DONE = "means.json"


def score(
    config: config_lib.SystemConfig,
    stage: str,
    workdir: str,
    checkpoints: str,
    out: str | os.PathLike,
    init: str | None = None,
    *,
    objects: int = 8,
    meshes: bool = True,
    follow: bool = True,
    loggers: Sequence[str] = writers.DEFAULT,
) -> None:
    """Score the checkpoints of a run that have no scores yet, in their order.

    Args:
      config: of the run.
      stage: in training.
      workdir: of the run; its weights are the other components of the system.
      checkpoints: folder of the run's checkpoints, local or ``gs://``.
      out: local folder of the scores.
      init: weights folder for what the run does not train, and for components that ``workdir`` lacks.
      objects: number of synthetic test objects.
      meshes: whether to reconstruct and score their meshes.
      follow: wait for new checkpoints until that of the last step is scored.
      loggers: see :func:`e3d_jax.training.writers.make_writers`.

    Raises:
      FileNotFoundError: there are no checkpoints, and none are waited for; or weights are missing.
      ValueError: a checkpoint or weights belong to another config, or the system cannot be scored.
      OSError: the scores cannot be written.
    """
    writers.check(loggers)
    out = pathlib.Path(out)
    files.make_folder(out)
    scored = max((int(path.parent.name) for path in out.glob(f"*/{DONE}")), default=0)
    with contextlib.ExitStack() as closing:
        outputs = writers.make_writers(out, scored, loggers)
        for writer in outputs:
            closing.callback(writer.close)
        for step in _new_steps(checkpoints, scored, config.training(stage).steps if follow else None):
            with tempfile.TemporaryDirectory() as weights:
                system = _others(config, stage, workdir, init, pathlib.Path(weights))
                try:
                    export.export(system, stage, checkpoints, step, weights, init)
                except ValueError as error:
                    if step in _steps(checkpoints):
                        raise
                    print(f"step {step} is left out: the run removed its checkpoint before it was read ({error})")
                    continue
                benchmark.run(weights, out / str(step), objects=objects, meshes=meshes)
            means = benchmark.means(benchmark.rows(out / str(step), "object" if meshes else "views"))
            for writer in outputs:
                writer.write(step, means)
            files.write_atomically(out / str(step) / DONE, json.dumps(means).encode())


def _new_steps(checkpoints: str, after: int, last: int | None) -> Iterator[int]:
    """Yield the steps of checkpoints as they appear, ascending, until the last one; those that there are without it."""
    while True:
        steps = [step for step in _steps(checkpoints, missing_ok=last is not None) if step > after]
        if steps:
            after = steps[0]
            yield after
        elif last is None or after >= last:
            return
        else:
            time.sleep(INTERVAL)


def _steps(checkpoints: str, missing_ok: bool = False) -> list[int]:
    """Return the steps that have a checkpoint now."""
    try:
        stored = checkpoints_lib.Checkpoints(checkpoints, 1, 0, read_only=True)
    except FileNotFoundError:
        if missing_ok:
            return []
        raise
    with contextlib.closing(stored):
        return stored.steps


def _others(
    config: config_lib.SystemConfig, stage: str, workdir: str, init: str | None, out: pathlib.Path
) -> config_lib.SystemConfig:
    """Write the other components of a system to a weights folder; return the config of those and the stage."""
    sources = [folder.resolve(init)] if init else []
    with contextlib.suppress(FileNotFoundError):
        sources.insert(0, folder.resolve(files.join(workdir, "weights")))
    found = {}
    for name in config.components:
        if name != stage and (source := next((source for source in sources if folder.has(source, name)), None)):
            found[name] = source
    for role in stages.get(stage).needs:
        if (name := config.provider(stage, role)) not in found:
            raise FileNotFoundError(
                f"{files.join(workdir, 'weights')} has no {name}, which the {stage} needs; give weights that have it "
                "with --init"
            )
    components = {name: part for name, part in config.components.items() if name == stage or name in found}
    system = config_lib.SystemConfig(config.system, components)
    for name, source in found.items():
        state.check_architecture(source, name, config)
        folder.write(out, name, folder.read(source, name), system, folder.SHARD_BYTES)
    return system
