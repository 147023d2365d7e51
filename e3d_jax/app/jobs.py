"""A queue of jobs that a process works on, one after the other, and their results on disk.

A job has a folder of its own, named by its id, which nobody can guess. The folder of a job that fails or is cancelled
is removed at once, that of a result when it expires.
"""

import fcntl
import os
import pathlib
import re
import secrets
import shutil
import threading
import time
import traceback

from e3d_jax import files
from e3d_jax.app import pictures, process, schema
from e3d_jax.app.pictures import Refused

PATIENCE = 2.0  # seconds that a cancelled job has to end by itself, before its process is ended
POLL = 0.1  # seconds between looks at whether a job is cancelled
RESULT, PREVIEW, STATUS = "result", "preview", "job.json"  # in the folder of a job
KEPT_ENDINGS = 1000  # jobs without a result whose ends are remembered


class _Job:
    """A job as the queue sees it; one of an earlier server has no request."""

    def __init__(self, name: str, progress: schema.Progress, request: schema.Request | None = None):
        self.name, self.progress, self.finished = name, progress, 0.0
        self.options = schema.Options(**request.model_dump(exclude={"pictures"}) if request else {})
        self.azimuths = [picture.azimuth for picture in request.pictures] if request else []
        self.cancelled = False
        self.version = 0  # grows with every change


class Jobs:
    """The queue.

    Args:
      folder: of all jobs; it is this queue's own.
      make: does a job, in a process of its own; it is pickled.
      limit: jobs that may wait.
      keep: seconds until a result is removed.

    Attributes:
      folder: the folder of all jobs.

    Raises:
      OSError: the folder cannot be written, or another queue uses it.
    """

    def __init__(self, folder: str | os.PathLike, make: process.Make, *, limit: int = 8, keep: float = 86_400.0):
        self.folder, self._limit, self._keep = pathlib.Path(folder).resolve(), limit, keep
        self._changed = threading.Condition()
        self._jobs: dict[str, _Job] = {}
        self._queue: list[_Job] = []
        self._running: _Job | None = None
        self._process = process.Process(make)
        self._closed = False
        files.make_folder(self.folder)
        self._lock = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OSError(f"another server uses {self.folder}; choose another folder for the results") from error
        self._reopen()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _reopen(self) -> None:
        """Find the results of an earlier server, and remove what it left unfinished."""
        for path in self.folder.iterdir():
            if not re.fullmatch(r"[\w-]{16}", path.name):
                continue
            try:
                found = _Job(path.name, schema.Progress.model_validate_json((path / STATUS).read_text()))
                found.finished = (path / STATUS).stat().st_mtime
                self._jobs[path.name] = found
            except (OSError, ValueError):
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """End the running job, and the process."""
        with self._changed:
            self._closed = True
            for job in (*self._queue, *([self._running] if self._running else [])):
                job.cancelled = True
            self._queue.clear()
            self._changed.notify_all()
        self._thread.join()
        self._process.kill()
        self._lock.close()

    def submit(self, request: schema.Request) -> str:
        """Put a job into the queue, and return its id.

        Raises:
          Refused: the queue is full, or a picture cannot be used.
        """
        self._expire()
        self._check_room()
        name = secrets.token_urlsafe(12)
        folder = self.folder / name
        try:
            folder.mkdir()
            for number, picture in enumerate(request.pictures):
                pictures.write(folder / str(number), picture.data, number)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise Refused("the server cannot store the pictures; try again later", 507) from error
            raise
        job = _Job(name, schema.Progress(), request)
        with self._changed:
            try:
                self._check_room()
            except Refused:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            self._jobs[name] = job
            self._queue.append(job)
            self._tell()
        return name

    def _check_room(self) -> None:
        if len(self._queue) >= self._limit:
            raise Refused(f"{self._limit} jobs are waiting already; try again when some are done", 429)

    def get(self, name: str) -> schema.Job:
        """Return a job.

        Raises:
          Refused: there is none of this id.
        """
        self._expire()
        with self._changed:
            job = self._find(name)
            done = job.progress.state == "done"
            return schema.Job(
                id=name,
                progress=job.progress,
                files=_names(self._shown(job)),
                expires=job.finished + self._keep if done else None,
            )

    def wait(self, name: str, version: int, seconds: float) -> tuple[schema.Progress, int]:
        """Return where a job is as soon as that changes, with the number of the change, or when the time is over.

        Args:
          name: the job's id.
          version: number of the last change that is known; -1 for none.
          seconds: how long to wait.

        Raises:
          Refused: there is none of this id.
        """
        with self._changed:
            job = self._find(name)
            self._changed.wait_for(lambda: job.version > version, seconds)
            return job.progress, job.version

    def cancel(self, name: str) -> None:
        """End a job, or remove its result.

        Raises:
          Refused: there is none of this id.
        """
        with self._changed:
            job = self._find(name)
            job.cancelled = True
            if job in self._queue:
                self._queue.remove(job)
                self._end(job, "cancelled")
            elif job.progress.state == "done":
                self._end(job, "cancelled", "the result was removed")
            self._tell()

    def file(self, name: str, file: str) -> pathlib.Path:
        """Return the path of a file of a result.

        Raises:
          Refused: there is none of this name.
        """
        if file not in self.get(name).files:
            raise Refused("there is no such file; the job lists those that there are", 404)
        return self._shown(self._find(name)) / file

    def _shown(self, job: _Job) -> pathlib.Path:
        """Return the folder whose files clients can read."""
        return self.folder / job.name / (RESULT if job.progress.state == "done" else PREVIEW)

    def _find(self, name: str) -> _Job:
        try:
            return self._jobs[name]
        except KeyError:
            raise Refused("there is no such job; it may have expired", 404) from None

    def _expire(self) -> None:
        """Remove old results, and forget ends long ago."""
        with self._changed:
            for name, job in list(self._jobs.items()):
                if job.progress.state == "done" and time.time() > job.finished + self._keep:
                    self._remove(job)
                    del self._jobs[name]
            ended = [job.name for job in self._jobs.values() if job.progress.state in ("failed", "cancelled")]
            for name in ended[:-KEPT_ENDINGS]:
                del self._jobs[name]

    def _remove(self, job: _Job) -> None:
        shutil.rmtree(self.folder / job.name, ignore_errors=True)

    def _end(self, job: _Job, state: schema.State, message: str = "") -> None:
        """Record the end of a job; without a result nothing of it stays."""
        if state == "done":
            job.finished = time.time()
        else:
            self._remove(job)
        self._set(job, job.progress.model_copy(update={"state": state, "message": message, "remaining": None}))

    def _set(self, job: _Job, progress: schema.Progress) -> None:
        with self._changed:
            job.progress, job.version = progress, job.version + 1
            self._changed.notify_all()

    def _tell(self) -> None:
        """Let waiting jobs know how many are ahead."""
        for place, job in enumerate(self._queue):
            self._set(job, schema.Progress(ahead=place + (self._running is not None)))
        self._changed.notify_all()

    # -- The thread that hands jobs to the process ------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                job = self._running = self._queue.pop(0)
                self._set(job, schema.Progress(state="running", stage="starting"))
                self._tell()
            try:
                self._run(job)
            except Exception:
                traceback.print_exc()
                self._process.kill()
                self._end(job, "failed", process.UNEXPECTED)
            with self._changed:
                self._running = None
                self._tell()

    def _run(self, job: _Job) -> None:
        """Do a job in the process, and follow it to its end."""
        self._process.begin(self.folder / job.name, job.options, job.azimuths)
        stop = None
        while True:
            if job.cancelled and stop is None:
                stop = time.monotonic() + PATIENCE
                self._process.release()
            if stop is not None and time.monotonic() > stop:
                self._process.kill()
                return self._end(job, "cancelled")
            try:
                progress = self._process.receive(POLL)
            except process.Ended:
                self._process.kill()
                return self._end(job, "failed", "the process of the job ended, maybe because of missing memory")
            if progress is None:
                continue
            if progress.state == "running":
                self._set(job, progress)
                continue
            if stop is None:
                self._process.release()
            job.progress = progress
            if progress.state == "done":
                files.write_atomically(self.folder / job.name / STATUS, progress.model_dump_json().encode())
            return self._end(job, progress.state, progress.message)


def _names(folder: pathlib.Path) -> list[str]:
    """Return the names of the files in a folder, sorted; links are left out."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()
    )
