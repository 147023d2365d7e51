"""Serve a page and an HTTP interface: images in, progress, and a mesh out (docs/app.md).

    e3d app [--port=7860] [--weights=mini] [--out=DIR] [--host=0.0.0.0 --token=SECRET]

Only this machine reaches it, unless --host is another of its addresses; then give a --token, without which requests are
refused. Results are kept in --out for --hours.
"""

import functools
import os
import sys

from e3d_jax.cli.flags import Flags, no_arguments


def define(flags: Flags) -> None:
    """Define the flags."""
    flags.string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 for all of the machine's.")
    flags.integer("port", 7860, "Port to listen at.", at_most=65_535)
    flags.string("weights", "mini", "Bundled weights, or a folder such as WORKDIR/weights of training.")
    flags.string("token", os.environ.get("E3D_TOKEN"), "What clients must know; E3D_TOKEN of the environment, too.")
    flags.string("out", None, "Folder of the results (default: e3d_jax/app in the user's cache).")
    flags.number("hours", 24.0, "Time that results are kept.")
    flags.integer("waiting", 8, "Jobs that may wait; further ones are refused.", at_least=1)


def run(flags: Flags, arguments: list[str]) -> None:
    """Serve until interrupted."""
    no_arguments(arguments)
    try:
        import uvicorn

        from e3d_jax.app import api, jobs, page, process
    except ImportError as error:
        raise OSError(f"{error.name} is missing; install the 'app' extra") from error
    from e3d_jax import files
    from e3d_jax.weights import places

    make = functools.partial(process.make_with, str(places.resolve(flags.weights).absolute()))
    folder = flags.out or files.user_cache() / "app"
    if flags.token is None and flags.host not in ("127.0.0.1", "localhost", "::1"):
        print("e3d app: whoever reaches this machine can use the server; --token=SECRET prevents that", file=sys.stderr)
    queue = jobs.Jobs(folder, make, limit=flags.waiting, keep=flags.hours * 3600)
    try:
        print(f"e3d app: http://{flags.host}:{flags.port}/ (Ctrl-C ends it)", flush=True)
        app = page.mount(api.make_app(queue, flags.token), queue)
        uvicorn.run(app, host=flags.host, port=flags.port, log_level="warning")
    finally:
        queue.close()
