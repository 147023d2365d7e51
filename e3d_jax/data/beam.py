"""Jobs that make datasets on the machines of Apache Beam: Dataflow, Flink, Spark, or this one.

One shard is one element of the pipeline. Beam's own options choose the machines. Without ``--runner`` among them, the
pipeline runs on this one, in a thread per worker, each with a worker process.
"""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from e3d_jax.data import engine, manifest, parallel

try:
    import apache_beam
    from apache_beam.options import pipeline_options
    from apache_beam.runners.portability import fn_api_runner
    from apache_beam.utils import shared
except ModuleNotFoundError as error:
    raise OSError(f"Apache Beam is missing ({error}); pip install 'e3d_jax[beam]'") from error

# The name is Beam's default. It would try to download a faster runner, so the one in Beam's package takes its place.
LOCAL = (None, "DirectRunner")


class WriteShard(apache_beam.DoFn):
    """Writes shards that do not exist yet, each with its receipt.

    Args:
      job: its shards are not looked at.
      processes: worker processes for each thread of Beam.
    """

    def __init__(self, job: engine.Job, processes: int):
        self._job, self._processes = dataclasses.replace(job, shards=()), processes
        self._shared = shared.Shared()

    def setup(self) -> None:
        """Make the work once in each process of Beam, and worker processes for this thread."""
        self._stack = contextlib.ExitStack()
        self._work = self._shared.acquire(self._job.make_work)
        self._pool = self._stack.enter_context(parallel.host_processes(self._processes))

    def process(self, shard: engine.Shard) -> Iterator[str]:
        """Write a shard, unless an earlier attempt has, and count its items."""
        if dataclasses.replace(self._job, shards=[shard]).missing():
            results = engine.named(shard, self._work.results(shard.items, self._pool))
            receipt = engine.write_shard(self._job, shard, _reported(results))
            for name, count in receipt.counts.items():
                apache_beam.metrics.Metrics.counter("e3d", name).inc(count)
        yield shard.name

    def teardown(self) -> None:
        """End the worker processes."""
        self._stack.close()


def _reported(results: Iterator[Any]) -> Iterator[Any]:
    for result in results:
        for message in engine.messages(result):
            logging.getLogger(__name__).warning(message)
        yield result


def _write_manifest(_: int, out: str) -> None:
    manifest.write(out)


def build(pipeline: apache_beam.Pipeline, job: engine.Job, processes: int) -> None:
    """Add the steps of a job to a pipeline: its missing shards, and the manifest once all are there.

    Args:
      pipeline: to add to.
      job: what to make; all machines must reach its folder.
      processes: worker processes for each thread of Beam.
    """
    written = (
        pipeline
        | "List shards" >> apache_beam.Create(job.missing())
        | "Spread" >> apache_beam.Reshuffle()
        | "Write shards" >> apache_beam.ParDo(WriteShard(job, processes))
    )
    ended = written | "Wait" >> apache_beam.combiners.Count.Globally()
    _ = ended | "Write manifest" >> apache_beam.Map(_write_manifest, os.fspath(job.out))


class Runner:
    """Does jobs with Apache Beam (:class:`e3d_jax.data.engine.Runner`).

    Args:
      options: of Beam, as on a command line.
    """

    def __init__(self, options: Sequence[str] = ()):
        self._options = list(options)

    def __call__(self, job: engine.Job, *, workers: int | None = None) -> engine.Counts:
        """Write the shards that do not exist yet, and the manifest.

        Args:
          job: what to make; all machines must reach its folder.
          workers: threads of Beam, each with a process, if this machine does the work; otherwise processes for each
            thread of Beam, one when not given.

        Returns:
          Numbers of items.

        Raises:
          RuntimeError: Beam could not end the job.
        """
        options = pipeline_options.PipelineOptions(self._options)
        if local := options.view_as(pipeline_options.StandardOptions).runner in LOCAL:
            here = [f"--direct_num_workers={workers or os.cpu_count()}", "--direct_running_mode=multi_threading"]
            options = pipeline_options.PipelineOptions([*here, *self._options])
        pipeline = apache_beam.Pipeline(fn_api_runner.FnApiRunner() if local else None, options)
        total, rest = (sum(len(shard.items) for shard in shards) for shards in (job.shards, job.missing()))
        build(pipeline, job, 1 if local else workers or 1)
        result = pipeline.run()
        result.wait_until_finish()
        found = result.metrics().query(apache_beam.metrics.MetricsFilter().with_namespace("e3d"))["counters"]
        counts = {counter.key.metric.name: counter.committed for counter in found}
        return engine.Counts(already=total - rest, **{"made": 0, "skipped": 0, "flawed": 0, **counts})
