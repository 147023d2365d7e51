"""The HTTP interface, with a stand-in for the system."""

import base64
import json
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from fastapi.testclient import TestClient

from e3d_jax.app import api, jobs
from tests import app_maker
from tests.test_app_jobs import bad_pictures, end_of, picture_bytes


@pytest.fixture
def queue(tmp_path):
    queue = jobs.Jobs(tmp_path / "jobs", app_maker.make, limit=1)
    yield queue
    queue.close()


@pytest.fixture
def client(queue):
    return TestClient(api.make_app(queue))


def body(seed=app_maker.QUICK, data=None, **options):
    encoded = base64.b64encode(picture_bytes() if data is None else data).decode()
    return {"pictures": [{"data": encoded, "azimuth": "front"}], "seed": seed, **options}


def submit(client, **options):
    answer = client.post("/api/jobs", json=body(**options))
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def test_a_mesh_is_a_few_requests_away(client):
    job = submit(client)
    lines = client.get(f"/api/jobs/{job}/events").text.splitlines()
    happened = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert happened[-1]["state"] == "done"
    steps = [event["done"] for event in happened if event["stage"] == "anchors"]
    assert steps == sorted(steps) and steps[-1] == 3
    assert client.get(f"/api/jobs/{job}").json()["files"] == ["mesh.glb", "views/rgb_00.png"]
    assert client.get(f"/api/jobs/{job}/files/mesh.glb").content == b"mesh of 1"


def test_a_running_job_can_be_cancelled(client, queue):
    job = submit(client, seed=app_maker.ENDLESS)
    assert client.delete(f"/api/jobs/{job}").status_code == 204
    assert end_of(queue, job).state == "cancelled"
    assert client.get(f"/api/jobs/{job}").json()["progress"]["state"] == "cancelled"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": -1}, "seed: Input should be greater than or equal to 0; see /api/openapi.json"),
        ({"quality": "great"}, "quality: Input should be 'weights', 'fast', 'standard' or 'best'; see"),
        ({"sed": 1}, "sed: Extra inputs are not permitted"),
        ({"pictures": []}, "pictures: List should have at least 1 item"),
        ({"pictures": [{"data": "", "azimuth": "above"}]}, "pictures.0.azimuth.float: Input should be a valid number"),
    ],
)
def test_bad_requests_are_refused_in_a_sentence(client, tmp_path, changes, said):
    answer = client.post("/api/jobs", json=body() | changes)
    assert answer.status_code == 422 and answer.json()["detail"].startswith(said)
    assert str(tmp_path) not in answer.text


@pytest.mark.parametrize("name", bad_pictures())
def test_bad_pictures_are_refused_and_leave_nothing(client, tmp_path, name):
    answer = client.post("/api/jobs", json=body(data=bad_pictures()[name]))
    assert answer.status_code == 422 and str(tmp_path) not in answer.text
    assert not [path for path in (tmp_path / "jobs").rglob("*") if path.name != ".lock"]


def test_too_many_jobs_are_refused(client):
    running, waiting = submit(client, seed=app_maker.ENDLESS), None
    while client.get(f"/api/jobs/{running}").json()["progress"]["state"] == "waiting":
        pass
    waiting = submit(client)
    answer = client.post("/api/jobs", json=body())
    assert (answer.status_code, answer.json()["detail"]) == (
        429,
        "1 jobs are waiting already; try again when some are done",
    )
    for job in (waiting, running):
        client.delete(f"/api/jobs/{job}")


def test_a_body_of_200_megabytes_is_refused_before_it_is_read(client):
    def chunks():
        yield b"{"
        raise AssertionError("it was read")

    answer = client.post("/api/jobs", content=chunks(), headers={"Content-Length": str(200_000_000)})
    assert (answer.status_code, answer.json()["detail"]) == (413, api.TOO_LARGE)


def test_a_body_without_a_length_is_read_only_so_far(client, monkeypatch):
    monkeypatch.setattr(api, "MAX_BODY", 1000)
    answer = client.post("/api/jobs", content=(b" " * 400 for _ in range(4)))
    assert (answer.status_code, answer.json()["detail"]) == (413, api.TOO_LARGE)


@pytest.mark.parametrize(
    "path", ["../0", "..%2f0", "%2e%2e/0", "..\\0", "%2fetc%2fpasswd", "//etc/passwd", "views/%2e%2e/%2e%2e/0", "%00"]
)
def test_no_other_file_is_given_out(client, queue, path):
    job = submit(client)
    end_of(queue, job)
    answer = client.get(f"/api/jobs/{job}/files/{path}")
    assert answer.status_code == 404


@pytest.mark.parametrize("path", ["..", "%2e%2e%2f", "x" * 16])
def test_jobs_that_do_not_exist_are_not_found(client, path):
    assert client.get(f"/api/jobs/{path}").status_code == 404


def test_the_schema_has_types_and_names_every_path(client):
    schema = client.get("/api/openapi.json").json()
    assert set(schema["paths"]) == {
        "/api/jobs",
        "/api/jobs/{job}",
        "/api/jobs/{job}/events",
        "/api/jobs/{job}/files/{name}",
    }
    assert schema["components"]["schemas"]["Request"]["properties"]["seed"]["type"] == "integer"


@pytest.mark.slow
def test_the_command_serves_at_the_loopback_address_alone(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "e3d_jax", "app", f"--port={port}", f"--out={tmp_path}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == f"e3d app: http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
        assert schema_at(port)["info"]["title"] == "e3d_jax"
        listening = pathlib.Path("/proc/net/tcp").read_text().splitlines()
        addresses = {line.split()[1] for line in listening[1:] if line.split()[3] == "0A"}
        assert f"0100007F:{port:04X}" in addresses and f"00000000:{port:04X}" not in addresses
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130, -signal.SIGINT)


def schema_at(port, seconds=60):
    """The schema that a server answers with as soon as it listens."""
    until = time.monotonic() + seconds
    while True:
        try:
            return json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/api/openapi.json"))
        except urllib.error.URLError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


# -- Tokens -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def locked(queue):
    return TestClient(api.make_app(queue, "secret"))


@pytest.mark.parametrize("path", ["/", "/api/openapi.json", "/api/jobs/x", "/?token=guess"])
def test_nothing_is_served_without_the_token(locked, path):
    answer = locked.get(path)
    assert answer.status_code == 401 and "needs its token" in answer.json()["detail"]


@pytest.mark.parametrize("header", ["Bearer secre", "Bearer secret2", "Bearer sécret", "secre"])
def test_other_tokens_are_refused(locked, header):
    assert locked.get("/api/openapi.json", headers={"Authorization": header.encode()}).status_code == 401


def test_a_bearer_token_lets_in(locked):
    assert locked.get("/api/openapi.json", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_a_token_in_the_address_becomes_a_cookie(locked):
    answer = locked.get("/api/openapi.json?token=secret&job=1", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/api/openapi.json?job=1")
    assert "HttpOnly" in answer.headers["set-cookie"] and "SameSite=strict" in answer.headers["set-cookie"]
    assert locked.get("/api/openapi.json").status_code == 200
