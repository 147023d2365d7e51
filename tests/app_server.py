"""Serve the app with a system that is quick, for browsers: ``python -m tests.app_server PORT FOLDER PAUSE [TOKEN]``."""

import contextlib
import functools
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import uvicorn

from e3d_jax.app import api, jobs, page
from tests import app_system

ROOT = pathlib.Path(__file__).parents[1]


def main(port, folder, pause, token=None):
    queue = jobs.Jobs(folder, functools.partial(app_system.make, float(pause)), limit=2)
    try:
        uvicorn.run(page.mount(api.make_app(queue, token), queue), port=int(port), log_level="warning")
    finally:
        queue.close()


@contextlib.contextmanager
def serving(folder, pause, *token):
    """The address of a server whose system is quick, but for a pause before each step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.app_server", str(port), str(folder), str(pause), *token]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    address = f"http://127.0.0.1:{port}/"
    try:
        until = time.monotonic() + 60
        while not answers(address):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(20)


def answers(address):
    try:
        urllib.request.urlopen(address).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError:
        return False
    return True


if __name__ == "__main__":
    main(*sys.argv[1:])
