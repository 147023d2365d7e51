"""What the time of a run was spent on, over all its restarts.

Each attempt at a run, from one start to what ended it, has an entry in ``FOLDER/goodput.json``. It is written with
every row of metrics, so that an attempt that was killed has one, too.
"""

import dataclasses
import json
import os
import pathlib
import time
import warnings
from collections.abc import Sequence

import jax

from e3d_jax import files
from e3d_jax.training import timing

NAME = "goodput.json"
# What a stopwatch of the training loop spends time on.
KINDS = ("start", "compile", "compute", "input", "checkpoint", "evaluation")


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One attempt at a run.

    Attributes:
      first: the step after which it began.
      last: the last step that it is known to have taken.
      began: when it began, in seconds since 1970.
      ended: when it last gave a sign of life.
      complete: whether it took the last step of the run.
      seconds: by what they were spent on, one of :data:`KINDS`.
    """

    first: int
    last: int
    began: float
    ended: float
    complete: bool
    seconds: dict[str, float]


class Record:
    """The entry of the present attempt, after those before it.

    Args:
      folder: of the run.
      first: the step after which the run continues.
      stopwatch: started with the attempt.
    """

    def __init__(self, folder: pathlib.Path, first: int, stopwatch: timing.Stopwatch):
        self._folder, self._stopwatch, self._earlier = folder, stopwatch, read(folder)
        now = time.time()
        self._attempt = Attempt(first, first, now - sum(stopwatch.seconds.values()), now, False, {})

    def write(self, step: int, complete: bool = False) -> None:
        """Note what happened until now, after a step.

        Raises:
          OSError: the file cannot be written.
        """
        spent = self._stopwatch.seconds
        seconds = {kind: spent.get(kind, 0.0) for kind in KINDS}
        self._attempt = dataclasses.replace(
            self._attempt, last=step, ended=time.time(), complete=complete, seconds=seconds
        )
        if jax.process_index() == 0:
            data = json.dumps([dataclasses.asdict(attempt) for attempt in self.attempts], indent=1)
            files.write_atomically(self._folder / NAME, data.encode())

    @property
    def attempts(self) -> list[Attempt]:
        """All attempts, the present one last."""
        return [*self._earlier, self._attempt]


def read(folder: str | os.PathLike) -> list[Attempt]:
    """Return the attempts at a run, in its folder or at its URL; none, with a warning, if the file is damaged."""
    path = files.join(folder, NAME)
    try:
        return [Attempt(**entry) for entry in json.loads(files.read(path))]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        warnings.warn(f"{path} cannot be read ({error}); the time of earlier attempts is left out", stacklevel=2)
        return []


def last_step(folder: str | os.PathLike) -> int:
    """Return the last step that a run is known to have taken."""
    return max((attempt.last for attempt in read(folder)), default=0)


def summary(attempts: Sequence[Attempt]) -> dict[str, float]:
    """Return the seconds of a run by what they were spent on, as metrics; at least one attempt must be given.

    ``lost`` seconds, of ``lost_steps``, were spent on steps that a later attempt took again; ``down`` are those between
    an attempt that did not complete the run and the next. ``fraction`` is that of ``compute`` in all.
    """
    total = dict.fromkeys((*KINDS, "lost", "down"), 0.0)
    lost_steps = 0
    for index, attempt in enumerate(attempts):
        later = attempts[index + 1 :]
        again = attempt.last - max(attempt.first, min((other.first for other in later), default=attempt.last))
        lost_steps += max(again, 0)
        lost = max(again, 0) / max(attempt.last - attempt.first, 1)
        for kind, seconds in attempt.seconds.items():
            part = lost if kind in ("compute", "input") else 0.0
            total[kind] += (1 - part) * seconds
            total["lost"] += part * seconds
        if later and not attempt.complete:
            total["down"] += max(later[0].began - attempt.ended, 0.0)
    metrics = {f"goodput/{kind}_s": seconds for kind, seconds in total.items()}
    fraction = total["compute"] / max(sum(total.values()), 1e-9)
    counts = {"lost_steps": float(lost_steps), "restarts": float(len(attempts) - 1)}
    return {"goodput/fraction": fraction} | metrics | {f"goodput/{name}": value for name, value in counts.items()}
