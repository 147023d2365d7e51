"""Object stores that refuse, stall, and outlive the processes that write to them; emulated on this machine."""

import json
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from e3d_jax import cli, files, stores
from e3d_jax.data import engine, manifest, records
from e3d_jax.training import checkpoints
from e3d_jax.weights import folder
from tests import toy

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[1]


class Faults:
    """What an emulated store does to requests: refuses every n-th with 503, and answers after some seconds."""

    def __init__(self):
        self.every, self.delay, self.requests, self.refused = 0, 0.0, 0, 0

    def refuses(self) -> bool:
        time.sleep(self.delay)
        self.requests += 1
        refused = bool(self.every) and self.requests % self.every == 0
        self.refused += refused
        return refused


@pytest.fixture
def s3(monkeypatch):
    """The URL of a bucket of S3, and its faults."""
    moto, boto3 = pytest.importorskip("moto.server"), pytest.importorskip("boto3")
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    from werkzeug import serving

    faults, inner = Faults(), moto.DomainDispatcherApplication(moto.create_backend_app)

    def application(environ, start):
        if faults.refuses():
            start("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"]
        return inner(environ, start)

    server = serving.make_server("localhost", 0, application, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    names = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (names | {"AWS_ENDPOINT_URL": f"http://localhost:{server.server_port}"}).items():
        monkeypatch.setenv(name, value)
    name = f"bucket{server.server_port}"
    boto3.client("s3").create_bucket(Bucket=name)
    yield f"s3://{name}", faults
    server.shutdown()


@pytest.fixture
def gs(monkeypatch):
    """The URL of a bucket of Google Cloud Storage, and its faults."""
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    pytest.importorskip("gcsfs").GCSFileSystem.clear_instance_cache()
    faults, handle, download = Faults(), emulator.Router.handle, emulator.objects.download

    def refuse_or_handle(self, method):
        if faults.refuses():
            self._request_handler.rfile.read(int(self._request_handler.headers.get("Content-Length") or 0))
            self._request_handler.send_error(503)
            return None
        return handle(self, method)

    def download_with_generation(request, response, storage, *others):  # TensorStore asks for it.
        download(request, response, storage, *others)
        if response.status < 300:
            found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
            response["x-goog-generation"] = found["generation"]

    monkeypatch.setattr(emulator.Router, "handle", refuse_or_handle)
    monkeypatch.setattr(emulator.objects, "download", download_with_generation)
    server = emulator.create_server("localhost", 0, in_memory=True, default_bucket="bucket")
    server.start()
    port = server._api._httpd.server_port
    for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
        monkeypatch.setenv(name, f"http://localhost:{port}")
    yield "gs://bucket", faults
    server.stop()


@pytest.fixture(params=["s3", "gs"])
def store(request, tmp_path, monkeypatch):
    monkeypatch.setenv("E3D_STORE_CACHE", str(tmp_path / "copies"))
    return request.getfixturevalue(request.param)


def shards_of(count):
    rng = np.random.default_rng(0)
    return [engine.Shard(f"shard-{index}", [rng.bytes(1000) for _ in range(3)]) for index in range(count)]


def test_a_dataset_passes_through_a_store_that_refuses_requests(store):
    url, faults = store
    faults.every = 5
    shards = shards_of(3)
    assert engine.write_shards(engine.Job(f"{url}/set", shards, engine.Work), workers=0) == (9, 0, 0, 0)
    assert engine.write_shards(engine.Job(f"{url}/set", shards, engine.Work), workers=0) == (0, 9, 0, 0)
    assert len(records.find_shards(f"{url}/set")) == 3 and faults.refused > 3
    found = manifest.read(f"{url}/set")
    assert found is not None and len(found["shards"]) == 3


WRITER = """
import sys
import jax.numpy as jnp
import numpy as np
from e3d_jax.data import engine
rng = np.random.default_rng(0)
shards = [engine.Shard(f"shard-{index}", [rng.bytes(1000) for _ in range(3)]) for index in range(6)]
engine.write_shards(engine.Job(sys.argv[1], shards, engine.Work), workers=0)
"""


def test_a_writer_that_is_killed_leaves_whole_shards_which_the_next_completes(store):
    url, faults = store
    faults.delay = 0.1
    run = subprocess.Popen([sys.executable, "-c", WRITER, f"{url}/set"])
    deadline = time.monotonic() + 120
    while len(files.glob(f"{url}/set", "*.array_record")) < 2 and time.monotonic() < deadline:
        pass
    run.kill()
    run.wait()
    time.sleep(1)  # What it had sent may still arrive.
    faults.delay = 0.0
    there = files.glob(f"{url}/set", "*.array_record")
    assert 2 <= len(there) < 6
    records.check_shards([stores.local(path) for path in there])
    already = 3 * len(there)
    assert engine.write_shards(engine.Job(f"{url}/set", shards_of(6), engine.Work), workers=0).already == already
    found = manifest.read(f"{url}/set")
    assert found is not None and {fields["records"] for fields in found["shards"].values()} == {3}
    assert len(records.find_shards(f"{url}/set")) == 6


def test_objects_larger_than_a_part_arrive_whole(store):
    url, faults = store
    faults.every, data = 7, np.random.default_rng(0).bytes(60 * 2**20)
    with files.staged(f"{url}/large") as local:
        local.write_bytes(data)
    assert pathlib.Path(stores.local(f"{url}/large")).read_bytes() == data


def test_checkpoints_in_a_store_come_back(gs):
    url, faults = gs
    faults.every = 20
    state = {"x": jnp.arange(4.0)}
    for step in (1, 2):
        saved = checkpoints.Checkpoints(f"{url}/run/checkpoints", 1, 0)
        saved.save(step, state, {"batches": step})
        saved.finish()
        saved.close()
    saved = checkpoints.Checkpoints(f"{url}/run/checkpoints", 1, 0)
    restored, progress = saved.restore({"x": jnp.zeros(4)})
    assert restored["x"].tolist() == [0, 1, 2, 3] and progress == {"batches": 2} and saved.steps == [2]
    saved.close()


CONFIG = """
from e3d_jax import presets
from tests import toy

def get_config():
    return presets.config_of(toy.config(steps=6, checkpoint_every=1, log_every=1).to_dict())
"""
# The command line, with the toy stages.
PROGRAM = """
import sys
import pytest
from e3d_jax import cli
from tests import toy

toy.register(pytest.MonkeyPatch())
cli.main(sys.argv[1:])
"""


@pytest.fixture
def arguments(toy_stages, tmp_path, monkeypatch):
    """Return the arguments of a run of the toy stage, given its folder and those of its data."""
    monkeypatch.setenv("E3D_STORE_CACHE", str(tmp_path / "copies"))
    (tmp_path / "toy_config.py").write_text(CONFIG)

    def arguments(workdir, data):
        return ["train", f"--config={tmp_path}/toy_config.py", "--stage=toy", f"--workdir={workdir}", f"--data={data}"]

    return arguments


@pytest.fixture
def undisturbed(arguments, tmp_path):
    """What a run on this machine ends in; its records are in the folder ``records``."""
    toy.write_records(tmp_path / "records")
    cli.main(arguments(tmp_path / "run", tmp_path / "records"))
    return results(tmp_path / "run")


def results(workdir):
    """Return the weights of a run, and the steps that have a row of metrics."""
    local = pathlib.Path(stores.local(workdir))
    rows = map(json.loads, (local / "toy" / "metrics.jsonl").read_text().splitlines())
    weights = {name: array.read().tolist() for name, array in folder.read(local / "weights", "toy").items()}
    return weights, [row["step"] for row in rows if "loss" in row]


def upload(path, url):
    system, inside = files.store(url)
    system.put_file(str(path / "toys.array_record"), f"{inside}/toys.array_record")


def test_a_run_in_a_store_that_refuses_requests_ends_as_one_on_this_machine(s3, arguments, undisturbed, tmp_path):
    url, faults = s3
    faults.every = 4
    upload(tmp_path / "records", f"{url}/records")
    cli.main([*arguments(f"{url}/run", f"{url}/records"), f"--checkpoints={tmp_path}/checkpoints"])
    assert results(f"{url}/run") == undisturbed
    assert faults.refused > 5


def test_a_run_in_a_store_that_is_killed_continues_there_without_a_loss(gs, arguments, undisturbed, tmp_path):
    url, faults = gs
    faults.every = 50
    upload(tmp_path / "records", f"{url}/records")
    given = arguments(f"{url}/run", f"{url}/records")
    run = subprocess.Popen([sys.executable, "-c", PROGRAM, *given], cwd=ROOT)
    while run.poll() is None and not files.glob(f"{url}/run/toy/checkpoints", "[2-6]"):
        time.sleep(0.1)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    cli.main(given)
    assert results(f"{url}/run") == undisturbed
