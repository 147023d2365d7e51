"""A system that makes a ball in no time, behind the app."""

import functools
import time

import numpy as np
import trimesh

from e3d_jax import cameras, events, stages, structs, system
from e3d_jax.app import worker
from tests import tiny

SIZE = 64
STEPS = 8
SLOW = 60  # the seed with which a step takes a second


class Ball(system.System):
    """Checks its arguments as the real system does; the result is a blue ball with a white front."""

    def __init__(self, pause=0.0):
        values = tiny.system_values() | {"size": SIZE}
        values["anchor"]["diffusion"] = values["anchor"].get("diffusion", {}) | {"max_inputs": 4}
        super().__init__(stages.parse_config(values), {})
        self.pause = pause

    def __call__(self, image, *, azimuths, elevation=None, fov=None, normal=None, seed=0, progress=events.ignore):
        self._directions(len(image), azimuths)
        clock = events.Clock(progress)
        with clock.stage("input", 1) as stage:
            stage.value = tuple(self.prepare(one, one, azimuth=0.0) for one in image)
        inputs = stage.value
        views = ball_views(seed)
        for name, value in (("anchors", views), ("interpolation", views), ("reconstruction", ball_mesh())):
            with clock.stage(name, STEPS) as stage:
                for _ in range(STEPS):
                    time.sleep(1.0 if seed == SLOW else self.pause)
                    stage.advance(1)
                stage.value = value
        return system.Result(inputs, views, ball_mesh(), clock.seconds, clock.peak_memory)


def ball_mesh():
    """A blue ball, white at the front, with a texture."""
    ball = trimesh.creation.icosphere(3, 0.4)
    image = np.zeros((4, 4, 3), np.float32)
    image[:, :2], image[:, 2:] = [0.1, 0.2, 0.9], 1
    front = ball.vertices[ball.faces].mean(1)[:, 0] > 0.3
    uv = np.tile(np.where(front, 0.9, 0.1)[:, None, None], (1, 3, 2)).astype(np.float32)
    colors = np.tile(np.float32([0.1, 0.2, 0.9]), (len(ball.vertices), 1))
    return structs.Mesh(ball.vertices.astype(np.float32), ball.faces, colors, structs.Texture(image, uv))


def ball_views(seed):
    """Discs whose red grows with the view."""
    y, x = np.mgrid[:SIZE, :SIZE]
    disc = np.hypot(x - SIZE / 2, y - SIZE / 2) < 0.4 * SIZE
    rgba = np.zeros((32, SIZE, SIZE, 4), np.float32)
    rgba[:, disc] = [0.1, 0.2, 0.9, 1]
    rgba[:, disc, 0] = np.linspace(0, 1, 32)[:, None]
    normals = np.zeros((8, SIZE, SIZE, 3), np.float32)
    normals[:, disc, 0] = 1
    layout = cameras.RELEASED
    return structs.ViewSet(rgba, cameras.ring(SIZE), layout.anchors, normals, layout.anchors)


@functools.cache
def _maker(pause):
    return worker.Maker(Ball(pause))


def make(pause, folder, options, azimuths):
    """Make the ball, with a pause before each step."""
    yield from _maker(pause)(folder, options, azimuths)
