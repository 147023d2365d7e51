"""Whether a host should copy the records of an object store or read them by range, with read-ahead.

    python benchmarks/stores.py --data=RECORDS --out=DIR [--latency=0.02] [--requests=1,4,16] [--steps=200]

Serves the dataset from an emulated S3 (``pip install -e ".[cloud-test]"``) in a process of its own, which waits
``--latency`` seconds before every answer. Then it

  * copies the dataset as ``e3d train`` does, and reads each record of the copy, in random order;
  * reads each record from the store by its range, with 1, 4, and 16 requests at a time;
  * trains the normal estimator of ``mini:smoke`` on the copy, and on ranges with the loader's read-ahead, four batches.

Prints the time per record of each way, and the part of a step that a run waited for its input; writes both to
``DIR/stores.json``. Records that are read by range are in one object, one after the other, and where each of them
begins is known beforehand, which an index of any file format would take further requests to find out.
"""

import contextlib
import json
import logging
import multiprocessing
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any
from unittest import mock

import boto3
import numpy as np
from absl import app, flags

from e3d_jax import files, presets, stages, stores
from e3d_jax.data import loader, records
from e3d_jax.training import goodput, loop

DATA = flags.DEFINE_string("data", None, "Folder of record shards of images.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder of copies, runs, and numbers.", required=True)
LATENCY = flags.DEFINE_float("latency", 0.02, "Seconds before every answer of the store.", lower_bound=0)
REQUESTS = flags.DEFINE_list("requests", ["1", "4", "16"], "Numbers of ranges that are asked for at a time.")
STEPS = flags.DEFINE_integer("steps", 200, "Steps of each run.", lower_bound=2)

BUCKET = "benchmark"
STAGE = "normals"


def serve(latency: float, port: Any) -> None:
    """Run an emulated S3 that answers late; send its port."""
    import moto.server
    from werkzeug import serving

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    inner = moto.server.DomainDispatcherApplication(moto.server.create_backend_app)

    def late(environ, start):
        time.sleep(latency)
        return inner(environ, start)

    server = serving.make_server("localhost", 0, late, threaded=True)
    port.send(server.server_port)
    server.serve_forever()


@contextlib.contextmanager
def emulated_s3(latency: float) -> Iterator[str]:
    """Yield the URL of an empty bucket, which all clients of this process find."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(latency, there), daemon=True)
    server.start()
    os.environ["AWS_ENDPOINT_URL"] = f"http://localhost:{here.recv()}"
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    try:
        yield f"s3://{BUCKET}"
    finally:
        server.terminate()


class Ranges(Sequence):
    """Records that are read from an object of a store by their ranges, by number.

    Args:
      url: to write the object to.
      contents: the records.
    """

    def __init__(self, url: str, contents: Sequence[bytes]):
        self._ends = np.cumsum([0, *map(len, contents)]).tolist()
        files.write_atomically(url, b"".join(contents))
        self._store, self._path = files.store(url)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> bytes:
        return self._store.cat_file(self._path, start=self._ends[index], end=self._ends[index + 1])


def ms_per_record(source: Any, requests: int) -> float:
    """Return the milliseconds per record of reading all of them once in random order."""
    order = np.random.default_rng(0).permutation(len(source)).tolist()
    start = time.perf_counter()
    with futures.ThreadPoolExecutor(requests) as pool:
        for _ in pool.map(source.__getitem__, order):
            pass
    return round(1000 * (time.perf_counter() - start) / len(order), 2)


def input_wait(data: str, size: int, workdir: pathlib.Path) -> float:
    """Train on images of a size; return the part of its steps that the run waited for input, in percent."""
    config = presets.load("mini:smoke").to_dict() | {"size": size}
    config[STAGE]["train"] |= {"steps": STEPS.value, "checkpoint_every": STEPS.value, "loader_workers": 1}
    loop.train(stages.parse_config(config), STAGE, str(workdir), {data: 1.0})
    seconds = goodput.read(workdir / STAGE)[-1].seconds
    return round(100 * seconds["input"] / (seconds["input"] + seconds["compute"]), 2)


def main(_: list[str]) -> None:
    """Measure both ways and print the numbers."""
    out = pathlib.Path(OUT.value).resolve()
    os.environ[stores.CACHE] = str(out / "copies")
    with emulated_s3(LATENCY.value) as bucket:
        files.store(bucket)[0].put(DATA.value.rstrip("/") + "/", f"{bucket}/records/", recursive=True)
        start = time.perf_counter()
        shards = records.find_shards(f"{bucket}/records")
        copying = time.perf_counter() - start
        copy = loader.open_shards(shards)
        contents = [copy[index] for index in range(len(copy))]
        size = records.unpack(contents[0]).size
        ranges = Ranges(f"{bucket}/ranges", contents)
        numbers = {
            "records": len(contents),
            "kilobytes_per_record": round(sum(map(len, contents)) / len(contents) / 1000, 1),
            "copying_s": round(copying, 2),
            "copy_ms_per_record": ms_per_record(copy, 1),
            "range_ms_per_record": {count: ms_per_record(ranges, int(count)) for count in REQUESTS.value},
            "copy_input_wait_percent": input_wait(f"{bucket}/records", size, out / "copy"),
        }
        with mock.patch.object(loader, "open_shards", lambda _: ranges):
            numbers["range_input_wait_percent"] = input_wait(DATA.value, size, out / "ranges")
    text = json.dumps(numbers, indent=1)
    (out / "stores.json").write_text(text)
    print(text)


if __name__ == "__main__":
    app.run(main)
