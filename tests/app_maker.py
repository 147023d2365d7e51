"""A stand-in for the process that has the models; the seed says what it does. Quick to import."""

import os
import time

from e3d_jax.app import jobs, pictures, schema

QUICK, ENDLESS, REFUSED, BROKEN, KILLED, STUCK = range(6)


def make(folder, options, azimuths):
    """Take three steps and write a file; or something that goes wrong."""
    if options.seed == REFUSED:
        raise pictures.Refused("picture 1 shows no object", 422)
    if options.seed == BROKEN:
        raise RuntimeError(f"secret: {folder}")
    if options.seed == KILLED:
        os._exit(1)
    for done in range(10**6 if options.seed == ENDLESS else 4):
        yield schema.Progress(state="running", stage="anchors", done=done, total=3, warnings=["dim"])
        time.sleep(60 if options.seed == STUCK else 0.02)
    (folder / jobs.RESULT / "views").mkdir(parents=True)
    (folder / jobs.RESULT / "mesh.glb").write_bytes(b"mesh of %d" % len(azimuths))
    (folder / jobs.RESULT / "views" / "rgb_00.png").write_bytes(b"view")
    (folder / jobs.RESULT / "link.png").symlink_to("/etc/passwd")
