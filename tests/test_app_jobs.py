"""The queue of jobs, with a stand-in for the system."""

import base64
import io
import os
import time

import numpy as np
import pytest
from PIL import Image

from e3d_jax.app import jobs, pictures, schema
from tests import app_maker


def picture_bytes(size=32):
    """A red square on transparency, as PNG."""
    rgba = np.zeros((size, size, 4), np.uint8)
    rgba[8:-8, 8:-8] = [200, 40, 40, 255]
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "PNG")
    return buffer.getvalue()


def request(seed=app_maker.QUICK, data=None, **options):
    """A request with one picture."""
    encoded = base64.b64encode(picture_bytes() if data is None else data)
    return schema.Request(pictures=[schema.Picture(data=encoded)], seed=seed, **options)


@pytest.fixture
def queue(tmp_path):
    queue = jobs.Jobs(tmp_path / "jobs", app_maker.make, limit=2)
    yield queue
    queue.close()


def end_of(queue, name, seconds=30.0):
    """The last progress of a job."""
    until, version, progress = time.monotonic() + seconds, -1, None
    while time.monotonic() < until:
        progress, version = queue.wait(name, version, 1.0)
        if progress.state not in ("waiting", "running"):
            return progress
    raise AssertionError(f"still {progress}")


def until_running(queue, name):
    version = -1
    while True:
        progress, version = queue.wait(name, version, 30.0)
        if progress.state == "running" and progress.total:
            return


def folders(tmp_path):
    return [path for path in (tmp_path / "jobs").iterdir() if path.is_dir()]


def test_a_job_ends_with_its_files(queue):
    name = queue.submit(request())
    assert end_of(queue, name).state == "done"
    job = queue.get(name)
    assert job.files == ["mesh.glb", "views/rgb_00.png"], "and not the link"
    assert queue.file(name, "mesh.glb").read_bytes() == b"mesh of 1"
    assert job.progress.warnings == ["dim"] and job.expires > time.time()


@pytest.mark.parametrize(
    "name", ["../0", "..", "link.png", "/etc/passwd", "views", "views/../../0", "job.json", "", "."]
)
def test_only_files_of_the_result_are_given_out(queue, name):
    job = queue.submit(request())
    end_of(queue, job)
    with pytest.raises(pictures.Refused, match="there is no such file"):
        queue.file(job, name)


@pytest.mark.parametrize("name", ["..", "", "nothing", "../jobs"])
def test_unknown_jobs_are_refused(queue, name):
    with pytest.raises(pictures.Refused, match="there is no such job; it may have expired"):
        queue.get(name)


@pytest.mark.parametrize(
    ("seed", "said"),
    [
        (app_maker.REFUSED, "picture 1 shows no object"),
        (app_maker.BROKEN, "the job failed for a reason that the server's log has"),
        (app_maker.KILLED, "the process of the job ended, maybe because of missing memory"),
    ],
)
def test_a_job_that_fails_says_why_and_leaves_nothing(queue, tmp_path, seed, said):
    progress = end_of(queue, queue.submit(request(seed)))
    assert (progress.state, progress.message) == ("failed", said)
    assert not folders(tmp_path)


def test_the_next_job_runs_after_one_that_ended_its_process(queue):
    end_of(queue, queue.submit(request(app_maker.KILLED)))
    assert end_of(queue, queue.submit(request())).state == "done"


@pytest.mark.parametrize("seed", [app_maker.ENDLESS, app_maker.STUCK])
def test_a_running_job_is_cancelled_within_five_seconds(queue, tmp_path, seed):
    name = queue.submit(request(seed))
    until_running(queue, name)
    start = time.monotonic()
    queue.cancel(name)
    assert end_of(queue, name).state == "cancelled" and time.monotonic() - start < 5
    assert not folders(tmp_path)


def test_a_job_that_stops_by_itself_leaves_the_process_to_the_next(queue):
    name = queue.submit(request(app_maker.ENDLESS))
    until_running(queue, name)
    process = queue._process.pid
    queue.cancel(name)
    end_of(queue, name)
    assert end_of(queue, queue.submit(request())).state == "done"
    assert queue._process.pid == process


def test_one_job_runs_at_a_time_and_the_others_know_their_place(queue):
    first = queue.submit(request(app_maker.ENDLESS))
    until_running(queue, first)
    second, third = queue.submit(request()), queue.submit(request())
    assert [queue.get(name).progress.ahead for name in (second, third)] == [1, 2]
    queue.cancel(second)
    assert queue.get(third).progress.ahead == 1
    queue.cancel(first)
    assert end_of(queue, third).state == "done"


def test_a_full_queue_refuses_and_leaves_nothing(queue, tmp_path):
    first = queue.submit(request(app_maker.ENDLESS))
    until_running(queue, first)
    waiting = [queue.submit(request()) for _ in range(2)]
    with pytest.raises(pictures.Refused, match="2 jobs are waiting already; try again when some are done") as refused:
        queue.submit(request())
    assert refused.value.status == 429 and len(folders(tmp_path)) == 3
    for name in (*waiting, first):
        queue.cancel(name)


def bad_pictures():
    """Files that are not pictures of an object, by name."""
    whole = picture_bytes(64)
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    clear = io.BytesIO()
    Image.new("RGBA", (64, 64)).save(clear, "PNG")
    return {
        "text": b"hello",
        "nothing": b"",
        "half": whole[: len(whole) // 2],
        "bomb": buffer.getvalue(),
        "clear": clear.getvalue(),
        "glb": b"glTF\x02\x00\x00\x00" + bytes(100),
        "script": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    }


@pytest.mark.parametrize("name", bad_pictures())
def test_what_is_no_picture_is_refused_in_a_sentence_without_a_path(queue, tmp_path, name):
    with pytest.raises(pictures.Refused, match=r"^picture 1 [^/\n]+$") as refused:
        queue.submit(request(data=bad_pictures()[name]))
    assert refused.value.status == 422 and not folders(tmp_path)


def test_a_picture_of_too_many_bytes_is_refused(queue, tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "MAX_BYTES", 50)
    with pytest.raises(pictures.Refused, match="picture 1 has more than 0 MB; shrink it first"):
        queue.submit(request())
    assert not folders(tmp_path)


def test_results_expire(tmp_path):
    queue = jobs.Jobs(tmp_path / "jobs", app_maker.make, keep=0.2)
    name = queue.submit(request())
    end_of(queue, name)
    time.sleep(0.3)
    with pytest.raises(pictures.Refused, match="it may have expired"):
        queue.get(name)
    assert not folders(tmp_path)
    queue.close()


def test_a_result_can_be_removed(queue, tmp_path):
    name = queue.submit(request())
    end_of(queue, name)
    queue.cancel(name)
    assert not folders(tmp_path) and queue.get(name).files == []


def test_a_new_server_has_the_results_of_the_last_and_nothing_unfinished(queue, tmp_path):
    done, unfinished = queue.submit(request()), queue.submit(request(app_maker.ENDLESS))
    until_running(queue, unfinished)
    queue.close()
    (tmp_path / "jobs" / ("x" * 16)).mkdir()
    (tmp_path / "jobs" / "notes").mkdir()
    again = jobs.Jobs(tmp_path / "jobs", app_maker.make)
    assert again.get(done).files == ["mesh.glb", "views/rgb_00.png"]
    assert {path.name for path in folders(tmp_path)} == {done, "notes"}
    again.close()


def test_two_servers_cannot_use_one_folder(queue, tmp_path):
    with pytest.raises(OSError, match=r"another server uses .*; choose another folder for the results"):
        jobs.Jobs(tmp_path / "jobs", app_maker.make)


def test_the_process_ends_with_the_server(queue):
    end_of(queue, queue.submit(request()))
    process = queue._process.pid
    queue.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
