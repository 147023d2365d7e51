"""Losses that are zero for perfect networks, a step that learns, and a run that resumes."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh

from configs import mini
from e3d_jax.diffusion import schedules
from e3d_jax.models import autoencoder, latents
from e3d_jax.training import loop, steps
from e3d_jax.weights import folder


class Line(nnx.Module):
    """y = w x + b, as small as a model gets."""

    def __init__(self):
        self.weight, self.bias = nnx.Param(jnp.zeros(())), nnx.Param(jnp.ones(()))

    def __call__(self, x):
        return self.weight[...] * x + self.bias[...]


def _line_loss(model, frozen, batch, key, *, slope):
    del frozen, key
    return ((model(batch["x"]) - slope * batch["x"]) ** 2).mean(), {}


def _line_step(devices: int, ema: float = 0.5):
    graph, params = nnx.split(Line(), nnx.Param)
    optimizer = optax.identity()
    mesh = Mesh(np.array(jax.devices()[:devices]), (steps.DATA,))
    loss = functools.partial(_line_loss, slope=3.0)
    state = steps.TrainState(jnp.zeros((), int), params, jax.tree.map(jnp.copy, params), optimizer.init(params))
    return state, steps.make_train_step(graph, {}, loss, optimizer, mesh, ema)


def _after(devices: int, count: int):
    state, step = _line_step(devices)
    for _ in range(count):
        state, metrics = step(state, {}, {"x": jnp.arange(4.0)}, jax.random.key(0), 0.05)
    return state, metrics


def test_a_step_follows_the_gradient():
    state, _ = _after(devices=1, count=1)
    # loss = mean((b - 3 x)^2) at w = 0, b = 1; dw = 2 mean(x (1 - 3 x)) = -18, db = 2 mean(1 - 3 x) = -7
    np.testing.assert_allclose([state.params["weight"][...], state.params["bias"][...]], [0.9, 1.35], rtol=1e-5)


def test_the_average_follows_the_parameters():
    state, _ = _after(devices=1, count=1)
    np.testing.assert_allclose(state.ema["weight"][...], 0.9 * 0.9, rtol=1e-5)  # decay 1 / 10 at the first step


def test_more_devices_give_the_same_step():
    one, four = (_after(devices, 3)[0] for devices in (1, 4))
    np.testing.assert_allclose(one.params["weight"][...], four.params["weight"][...], rtol=1e-5)


def test_steps_learn():
    assert _after(devices=1, count=50)[1]["loss"] < 0.1


def test_turning_normals_puts_the_input_view_on_x():
    normal = jnp.array([0.0, 1.0, 0.0])  # faces a camera at azimuth 90 degrees
    rgba = jnp.append(normal / 2 + 0.5, 1.0)[None, None, None]
    turned = steps.turn_normals(rgba, jnp.array([jnp.pi / 2]))
    np.testing.assert_allclose(turned[0, 0, 0], [1.0, 0.5, 0.5, 1.0], atol=1e-6)


def test_turning_leaves_the_background_white():
    rgba = jnp.array([1.0, 1.0, 1.0, 0.0])[None, None, None]
    np.testing.assert_array_equal(steps.turn_normals(rgba, jnp.ones(1)), rgba)


def test_jitter_keeps_the_silhouette():
    rgba = jax.random.uniform(jax.random.key(0), (2, 4, 4, 4))
    jittered = steps.jitter_colours(rgba, jax.random.key(1), 0.3)
    np.testing.assert_array_equal(jittered[..., 3], rgba[..., 3])
    assert jnp.abs(jittered - rgba).max() > 0.05


class _Oracle:
    """Knows the clean latents of the one example that it is asked about."""

    def __init__(self, clean):
        self.clean = clean

    def condition(self, *arguments):
        return arguments

    def __call__(self, noisy, time, condition):
        del condition
        level = schedules.discrete_levels(time.astype(int))
        alpha, sigma = (x[None, :, None, None, None, None] for x in (level.alpha, level.sigma))
        noise = (noisy - alpha * self.clean) / sigma
        return alpha * noise - sigma * self.clean


def test_a_perfect_anchor_network_has_no_loss():
    widths = {"block_out_channels": (32, 32), "layers_per_block": 1, "latent_channels": 2}
    module = autoencoder.Autoencoder(in_channels=4, out_channels=4, **widths, scaling_factor=2.0, rngs=nnx.Rngs(0))
    target = jax.random.randint(jax.random.key(0), (1, 2, 8, 8, 8, 4), 0, 256).astype(jnp.uint8)
    batch = {"condition": target[:, :, 0], "target": target, "azimuth": jnp.zeros(1)}
    upright = steps.turn_normals(target[:, 1] / 255.0, jnp.zeros(1))
    seen = jnp.stack([target[:, 0] / 255.0, upright], 0)
    clean = 2.0 * latents.encode(module, latents.network_image(seen, 4))
    frozen = {"autoencoder": module, "normals": lambda image: jnp.ones((*image.shape[:3], 3))}
    settings = {"prediction": "v", "min_snr_gamma": 0.0, "estimated_normals": 0.5, "drop_condition": 0.5}
    loss, _ = steps.anchor_loss(_Oracle(clean), frozen, batch, jax.random.key(1), **settings)
    assert loss < 1e-6


@pytest.fixture(scope="module")
def trained(tmp_path_factory, ball_folder):
    """A work folder in which the toy normal estimator was trained for its four steps."""
    workdir = tmp_path_factory.mktemp("run")
    config = mini.get_config("smoke").to_dict()
    config["normals"]["model"] |= {"block_out_channels": (32, 32), "attention_levels": (False, True)}
    loop.train("normals", config, str(workdir), str(ball_folder))
    return workdir, config, ball_folder


def _metrics(workdir):
    return [json.loads(line) for line in (workdir / "normals" / "metrics.jsonl").read_text().splitlines()]


def test_a_run_logs_and_leaves_weights(trained):
    workdir, _, _ = trained
    assert [row["step"] for row in _metrics(workdir)] == [2, 4]
    assert "normals" in folder.read_config(workdir / "weights")


def test_a_run_continues_where_it_stopped(trained, tmp_path):
    workdir, config, records = trained
    half = json.loads(json.dumps(config))
    interrupted = {**half["normals"]["train"], "steps": 4}
    stop = RuntimeError("power cut")

    # Interrupt after the checkpoint of step 2, then run again.
    save = loop.steps.make_train_step

    def failing(*arguments):
        step = save(*arguments)

        def run(state, *rest):
            if int(state.step) == 3:
                raise stop
            return step(state, *rest)

        return run

    half["normals"]["train"] = interrupted
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(loop.steps, "make_train_step", failing)
        loop.train("normals", half, str(tmp_path), str(records))
    loop.train("normals", half, str(tmp_path), str(records))
    assert _metrics(tmp_path)[-1]["loss"] == _metrics(workdir)[-1]["loss"]


def test_a_work_folder_of_another_config_is_refused(trained):
    workdir, config, records = trained
    other = json.loads(json.dumps(config))
    other["normals"]["train"]["learning_rate"] = 1.0
    with pytest.raises(ValueError, match="another config"):
        loop.train("normals", other, str(workdir), str(records))


def test_a_stage_names_what_must_be_trained_first(tmp_path, ball_folder):
    with pytest.raises(FileNotFoundError, match=r"train\.py"):
        loop.train("anchor", mini.get_config("smoke").to_dict(), str(tmp_path), str(ball_folder))
