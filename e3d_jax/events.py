"""What a run reports while it goes on: the steps of its stages, and what each stage made.

A :class:`Clock` times the stages of a run and gives their events to a listener, which may end the run by raising. Two
listeners are here: :class:`Bars` draws progress bars, and :func:`stream` turns the events into a generator.
"""

import concurrent.futures
import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import tqdm

from e3d_jax import reports


@dataclasses.dataclass(frozen=True)
class Step:
    """A stage has begun, or has taken some of its steps.

    Attributes:
      stage: its name.
      done: steps taken; 0 at the beginning, when its programs may have to be compiled.
      total: steps of the stage; more work may follow the last.
      seconds: time since the stage began.
    """

    stage: str
    done: int
    total: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Done:
    """A stage has ended.

    Attributes:
      stage: its name.
      seconds: time that it took.
      peak_memory: see :func:`e3d_jax.reports.peak_memory_gb`.
      value: what it made.
    """

    stage: str
    seconds: float
    peak_memory: float
    value: Any


Event = Step | Done
Listener = Callable[[Event], object]


def ignore(event: Event) -> None:
    """Listen to nothing."""


class Cancelled(Exception):
    """Nobody listens to the events of a run any longer, so it ends."""


class Stage:
    """A stage that is going on; ``value`` is what it made, once that is there."""

    def __init__(self, name: str, total: int, listener: Listener):
        self.name = name
        self.value: Any = None
        self._total, self._done, self._listener, self._start = total, 0, listener, time.perf_counter()
        self.advance(0)

    @property
    def seconds(self) -> float:
        """Time since the stage began."""
        return round(time.perf_counter() - self._start, 3)

    def advance(self, steps: int) -> None:
        """Report that some more steps are done."""
        self._done += steps
        self._listener(Step(self.name, self._done, self._total, self.seconds))


class Clock:
    """Seconds and peak memory of each stage of a run, whose events go to a listener."""

    def __init__(self, listener: Listener = ignore):
        self._listener = listener
        self.seconds: dict[str, float] = {}
        self.peak_memory: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """Time a stage of ``total`` steps."""
        stage = Stage(name, total, self._listener)
        yield stage
        self.seconds[name], self.peak_memory[name] = stage.seconds, reports.peak_memory_gb()
        self._listener(Done(name, self.seconds[name], self.peak_memory[name], stage.value))


class Bars:
    """A listener that draws a progress bar for each stage."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, event: Event) -> None:
        """Draw an event."""
        if isinstance(event, Done):
            self._bar.update(self._bar.total - self._bar.n)
            self._bar.close()
        elif event.done == 0:
            self._bar = tqdm.tqdm(total=event.total, desc=f"{event.stage:14s}", unit="step")
        else:
            self._bar.update(event.done - self._bar.n)


def stream(work: Callable[[Callable[[Any], None]], Any]) -> Generator[Any]:
    """Yield what ``work(report)``, which runs in a thread, reports and at last returns.

    When the generator is closed, the next report raises :class:`Cancelled` in the work, and its end is awaited.

    Raises:
      Exception: what the work raises.
    """
    reported: queue.SimpleQueue[Any] = queue.SimpleQueue()
    closed, end = threading.Event(), object()

    def report(event: Any) -> None:
        if closed.is_set():
            raise Cancelled
        reported.put(event)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        result = pool.submit(work, report)
        result.add_done_callback(lambda _: reported.put(end))
        try:
            while (event := reported.get()) is not end:
                yield event
            yield result.result()
        finally:
            closed.set()
