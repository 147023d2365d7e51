"""Serve the app with a system that is quick, for browsers: ``python -m tests.app_server PORT FOLDER PAUSE [TOKEN]``."""

import functools
import sys

import uvicorn

from e3d_jax.app import api, jobs, page
from tests import app_system


def main(port, folder, pause, token=None):
    queue = jobs.Jobs(folder, functools.partial(app_system.make, float(pause)), limit=2)
    try:
        uvicorn.run(page.mount(api.make_app(queue, token), queue), port=int(port), log_level="warning")
    finally:
        queue.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
