"""How the averaged parameters do on objects that the run never trains on: losses, and pictures beside the true ones."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from e3d_jax import images
from e3d_jax.diffusion import samplers, schedules
from e3d_jax.models import latents
from e3d_jax.sampling import anchors as anchor_sampling
from e3d_jax.sampling import interpolation as window_sampling
from e3d_jax.training import losses, sharding, steps

NUM_SHOWN = 4


class Heldout:
    """Scores of fixed batches with fixed noise, so that two steps of a run, or two runs, compare.

    Args:
      config: a whole system's.
      stage: the one in training.
      assembly: see :func:`e3d_jax.training.steps.assemble`.
      mesh: that it lives on.
      batches: of the loader.
      pictured: whether they hold pictures, to compare samples with, rather than latents.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        stage: str,
        assembly: steps.Assembly,
        mesh: Mesh,
        batches: Iterable[Mapping[str, np.ndarray]],
        *,
        pictured: bool,
    ):
        copied = NamedSharding(mesh, PartitionSpec())
        split = NamedSharding(mesh, sharding.BATCH)
        places = (assembly.stored.params, assembly.frozen_stored, split, copied)
        self._batches = [
            sharding.global_batch({name: rows for name, rows in batch.items() if name != "id"}, mesh)
            for batch in batches
        ]
        self._loss = jax.jit(assembly.objective, in_shardings=places, out_shardings=copied)
        self._shows = stage in SHOWS and pictured
        if self._shows:
            show = functools.partial(_merged, SHOWS[stage], config[stage], assembly)
            self._show = jax.jit(show, in_shardings=places, out_shardings=copied)

    def __call__(self, params: Any, frozen: Any) -> tuple[dict[str, float], Float[np.ndarray, "h w 3"] | None]:
        """Metrics, and for the diffusion stages a sheet: of each object a row of true and a row of sampled views."""
        rows = [
            self._loss(params, frozen, batch, jax.random.key(index))[1] for index, batch in enumerate(self._batches)
        ]
        metrics = {f"heldout/{name}": float(np.mean([row[name] for row in rows])) for name in rows[0]}
        if not self._shows:
            return metrics, None
        true, sampled = self._show(params, frozen, self._batches[0], jax.random.key(0))
        metrics["heldout/psnr"] = float(-10 * np.log10(np.mean((np.asarray(true) - np.asarray(sampled)) ** 2)))
        pairs = np.stack([np.asarray(true), np.asarray(sampled)], 1)[:NUM_SHOWN]  # [b, 2, views, h, w, 3]
        return metrics, np.moveaxis(pairs, 2, 3).reshape(-1, pairs.shape[2] * pairs.shape[4], 3)


def _merged(show, settings, assembly: steps.Assembly, params, frozen, batch, key):
    """Call ``show`` with the stage and its autoencoder."""
    stage = nnx.merge(assembly.graph, params, frozen["rest"])
    autoencoder = nnx.merge(assembly.frozen_graphs["autoencoder"], frozen["autoencoder"])
    return show(settings, stage, autoencoder, batch, key)


def _show_anchors(settings, stage, autoencoder, batch, key):
    """The eight anchors in both domains, true and sampled from the true condition."""
    target, pair = batch["target"] / 255.0, batch["condition"] / 255.0
    turned = [losses.turned(x, batch["azimuth"]) for x in (target, pair)]
    trained = {name: settings["loss"][name] for name in anchor_sampling.TRAINED}
    sampled = anchor_sampling.sample(stage, autoencoder, turned[1], key, **trained, **settings["sampling"])
    flat = lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])  # noqa: E731
    return flat(_over_white(turned[0])), flat(_over_white(sampled))


def _show_window(settings, stage, autoencoder, batch, key):
    """The nine frames of a window, true and sampled from its true anchors."""
    sampling = settings["sampling"]
    noise = sampling.get("told_noise", sampling["anchor_noise"])
    clean, known = losses.window_of_images(
        stage, {"autoencoder": autoencoder}, batch, key, mean=jnp.log(jnp.maximum(noise, 1e-6))
    )
    grid = schedules.karras_grid(sampling["num_steps"], noise_max=sampling["noise_max"])
    plan = samplers.plan(grid, samplers.ORDERS[sampling["sampler"]])
    state = window_sampling.take_steps(stage, known, samplers.begin(jax.random.normal(key, clean.shape)), plan)
    return _over_white(batch["window"] / 255.0), _over_white(latents.decode(autoencoder, state.sample))


def _over_white(picture: jax.Array) -> jax.Array:
    """Pictures with or without alpha as they look on paper."""
    return jnp.asarray(images.composite(picture)) if picture.shape[-1] == 4 else picture


SHOWS = {"anchor": _show_anchors, "interpolation": _show_window}
