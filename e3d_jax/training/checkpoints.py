"""Checkpoints of a run: written in the background, complete or not at all, and restored onto any mesh.

The checkpoint of a step holds the training state and, as JSON, the loader's position and the metrics not yet written.
"""

import copy
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from e3d_jax import files


class Checkpoints:
    """The checkpoints in a folder, local or ``gs://``.

    Args:
      folder: where they are; created if missing.
      keep_last: how many of the newest are kept.
      keep_every: those of steps that are multiples of this are kept forever; 0 for none.
      read_only: change nothing, because a run may be writing there; the folder must exist.

    Raises:
      FileNotFoundError: there is no such folder to read.
      ValueError: it is in a store that Orbax cannot write to.
    """

    def __init__(self, folder: str, keep_last: int, keep_every: int, *, read_only: bool = False):
        if files.is_remote(folder) and not folder.startswith("gs://"):
            raise ValueError(f"checkpoints cannot be in {folder}; give --checkpoints=DIR, in a local folder or gs://")
        self._folder = epath.Path(folder if files.is_remote(folder) else os.path.abspath(folder))
        self._read_only = read_only
        if read_only and not self._folder.is_dir():
            raise FileNotFoundError(f"no folder of checkpoints at {folder}; give the one that training writes them to")
        if read_only:
            options = ocp.CheckpointManagerOptions(read_only=True)
        else:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep_last, keep_period=keep_every or None, cleanup_tmp_directories=True
            )
        handlers = {"state": ocp.StandardCheckpointHandler(), "progress": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    @property
    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Start saving a step; return as soon as training may change the state.

        Raises:
          OSError: this checkpoint, or the one before, cannot be written.
        """
        # It is written later, when the loop may have changed its lists.
        progress = copy.deepcopy(progress)
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        self._guarded(lambda: self._manager.save(step, args=items))

    def finish(self) -> None:
        """Wait until everything is written.

        Raises:
          OSError: a checkpoint cannot be written.
        """
        self._guarded(self._manager.wait_until_finished)

    def restore(self, like: Any, step: int | None = None) -> tuple[Any, dict[str, Any]] | None:
        """Return the newest state that can be read and its progress; None if there are no checkpoints.

        Damaged checkpoints that are newer are set aside, with a warning.

        Args:
          like: shapes, types and shardings of the state; the mesh may differ from the one it was saved on.
          step: restore this step instead of the newest.

        Raises:
          ValueError: the checkpoint belongs to another model, there is none of this step, or none can be read; nothing
            is changed then.
          OSError: a damaged checkpoint cannot be set aside.
        """
        steps, failures = self.steps, dict[int, Exception | None]()
        if step is not None and step not in steps:
            raise ValueError(f"{self._folder} has no checkpoint of step {step}; it has {steps}")
        for candidate in reversed(steps) if step is None else [step]:
            try:
                self._check_same_model(candidate, like)
                items = ocp.args.Composite(state=ocp.args.StandardRestore(like), progress=ocp.args.JsonRestore())
                restored, failure = self._manager.restore(candidate, args=items), None
            except OtherModelError:
                raise
            except Exception as error:
                # No contract says what a library raises on damaged bytes. Interrupts are not an Exception.
                failure = error
            if _all_agree(failure is None):
                self._set_aside(failures)
                return restored["state"], restored["progress"]
            failures[candidate] = failure
        if failures:
            reasons = "; ".join(f"step {candidate}: {_reason(failure)}" for candidate, failure in failures.items())
            others = [other for other in steps if other not in failures]
            choice = f"take another step, of {others}" if others else "choose another folder"
            raise ValueError(f"{self._folder}: no checkpoint can be read ({reasons}); make them readable, or {choice}")
        return None

    def close(self) -> None:
        """Wait until everything is written, and stop the threads that write.

        Raises:
          OSError: a checkpoint cannot be written.
        """
        self._guarded(self._manager.close)

    def _check_same_model(self, step: int, like: Any) -> None:
        """Refuse a checkpoint whose arrays have other names or shapes.

        Raises:
          OtherModelError: names the first difference.
          ValueError: the checkpoint lists no arrays.
        """
        stored = _shapes(self._manager.item_metadata(step)["state"])
        wanted = _shapes(like)
        different = sorted(name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name))
        if not stored:
            raise ValueError("it lists no arrays")
        if different:
            name = different[0]
            raise OtherModelError(
                f"the checkpoint of step {step} in {self._folder} belongs to another model: {len(different)} arrays "
                f"differ, the first is {name} of shape {stored.get(name)}, not {wanted.get(name)}; choose another "
                "--workdir"
            )

    def _set_aside(self, failures: Mapping[int, Exception | None]) -> None:
        """Move damaged checkpoints away, so that their steps can be saved again."""
        if not failures:
            return
        for step, failure in failures.items() if jax.process_index() == 0 else ():
            logging.warning("checkpoint %d in %s is damaged (%s); skipped", step, self._folder, _reason(failure))
            if not self._read_only:
                aside = self._folder / f"damaged-{step}"
                if aside.exists():
                    aside.rmtree()
                (self._folder / str(step)).rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints")
        self._manager.reload()

    def _guarded(self, write: Callable[[], object]) -> None:
        """Call a function that writes; raise one OSError, which says what is left, if that fails."""
        try:
            write()
        except Exception as error:
            # Orbax passes on whatever its storage layer raised, in another thread.
            good = f"the last good one is step {self.steps[-1]}" if self.steps else "there is no earlier one"
            full = "No space left" in str(error)
            reason = "no space left" if full else _reason(error)
            raise OSError(
                f"cannot write a checkpoint to {self._folder} ({reason}); {good}; make space there and run again"
            ) from error


class OtherModelError(ValueError):
    """A checkpoint holds other arrays than the model has."""


def _reason(failure: Exception | None) -> str:
    """Return in one line what went wrong."""
    return (str(failure or "another process cannot read it").splitlines() or [repr(failure)])[0][:200]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a tree's arrays by their path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}


def _all_agree(good: bool) -> bool:
    """Return whether all processes say so."""
    if jax.process_count() == 1:
        return good
    return bool(np.all(multihost_utils.process_allgather(np.array(good))))
