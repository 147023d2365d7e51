"""What a run reports beside its own losses.

To add an evaluation, write an :class:`Evaluator` and list it in :func:`make_evaluators`.
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from e3d_jax import config as config_lib
from e3d_jax import stages
from e3d_jax.data import loader
from e3d_jax.evaluation import metrics as metrics_lib
from e3d_jax.evaluation import report
from e3d_jax.training import sharding, steps

HELDOUT_BATCHES = 2
# Objects of which images are shown.
NUM_SHOWN = 4


@runtime_checkable
class Evaluator(Protocol):
    """Scores a run every now and then.

    Attributes:
      every: steps between two evaluations; the last step is always evaluated.
    """

    every: int

    def __call__(
        self, step: int, ema_params: Any, frozen: Any
    ) -> tuple[Mapping[str, float], Mapping[str, Float[np.ndarray, "h w 3"]]]:
        """Return metrics and images, in [0, 1], by name.

        Args:
          step: the last one taken.
          ema_params: EMA of the parameters in training.
          frozen: see :class:`e3d_jax.training.steps.Assembly`.
        """


def make_evaluators(
    config: config_lib.SystemConfig,
    stage: str,
    assembly: steps.Assembly,
    mesh: Mesh,
    heldout: str | None,
    kind: str | None,
) -> list[Evaluator]:
    """Return the evaluators of a run.

    Args:
      config: of the system.
      stage: in training.
      assembly: see :func:`e3d_jax.training.steps.assemble`.
      mesh: of the assembly.
      heldout: dataset that is not trained on.
      kind: of its records, "images" or "latents".
    """
    evaluators: list[Evaluator] = []
    if heldout is not None and kind is not None:
        train, source = config.training(stage), stages.get(stage).sources[kind]
        batches = loader.make_loader(
            {heldout: 1.0},
            source,
            config,
            batch_size=train.batch_size,
            seed=config.system.seed,
            rows=sharding.own_rows(mesh, train.batch_size).tolist(),
            max_bad_records=train.max_bad_records,
        )
        fixed = [batch for _, batch in itertools.islice(batches, HELDOUT_BATCHES)]
        evaluators.append(HeldOut(config, stage, assembly, mesh, fixed, show=kind == "images"))
    return evaluators


class HeldOut:
    """Scores of fixed batches with fixed noise, so that two steps of a run, or two runs, can be compared.

    Args:
      config: of the system.
      stage: in training.
      assembly: see :func:`e3d_jax.training.steps.assemble`.
      mesh: of the assembly.
      batches: of objects that are not trained on.
      show: whether they hold images that generated ones can be compared with.
    """

    def __init__(
        self,
        config: config_lib.SystemConfig,
        stage: str,
        assembly: steps.Assembly,
        mesh: Mesh,
        batches: Iterable[Any],
        *,
        show: bool,
    ):
        component, stage_show = config[stage], stages.get(stage).show
        self.every = config.training(stage).evaluate_every
        copied, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, sharding.BATCH)
        places = (assembly.stored.params, assembly.frozen_stored, split, copied)
        self._batches = [sharding.global_batch(batch, mesh) for batch in batches]
        self._loss = jax.jit(assembly.objective, in_shardings=places, out_shardings=copied)
        self._show = None
        if show and stage_show is not None:

            def show_batch(params, frozen, batch, key):
                model = assembly.merge(params, frozen)
                modules = {role: nnx.merge(graph, frozen[role]) for role, graph in assembly.frozen_graphs.items()}
                return stage_show(model, modules, batch, key, component, config.layout)

            self._show = jax.jit(show_batch, in_shardings=places, out_shardings=copied)

    def __call__(
        self, step: int, ema_params: Any, frozen: Any
    ) -> tuple[dict[str, float], dict[str, Float[np.ndarray, "h w 3"]]]:
        """Return mean losses, and if the stage can show images, their scores and a sheet of them."""
        del step
        rows = [
            self._loss(ema_params, frozen, batch, jax.random.key(index))[1] for index, batch in enumerate(self._batches)
        ]
        metrics = {f"heldout/{name}": float(np.mean([row[name] for row in rows])) for name in rows[0]}
        if self._show is None:
            return metrics, {}
        true, generated = map(np.asarray, self._show(ema_params, frozen, self._batches[0], jax.random.key(0)))
        metrics |= {f"heldout/{name}": score for name, score in image_scores(true, generated).items()}
        # All images side by side are one image, whose PSNR is that of the mean squared error over all of them.
        metrics["heldout/psnr"] = metrics_lib.psnr(*(x.reshape(-1, *x.shape[-2:]) for x in (generated, true)))
        return metrics, {"heldout": make_sheet(true[:NUM_SHOWN], generated[:NUM_SHOWN])}


def image_scores(true: Float[np.ndarray, "b v h w 3"], generated: Float[np.ndarray, "b v h w 3"]) -> dict[str, float]:
    """Return the mean ST-LPIPS and sharpness of the images that are shown.

    A figure is left out where it cannot be given: without weights, or for images that are too small.
    """
    table = {name: metrics_lib.VIEW_METRICS[name] for name in ("st_lpips", "sharpness")}
    rows = []
    for a, b in zip(generated[:NUM_SHOWN], true[:NUM_SHOWN], strict=True):
        for pair in zip(a, b, strict=True):
            pred, gt = (np.concatenate([image, np.ones_like(image[..., :1])], -1) for image in pair)
            rows.append(metrics_lib.scores(table, metrics_lib.ViewPair(pred, gt)))
    return report.mean_scores(rows)


def make_sheet(
    true: Float[np.ndarray, "b v h w 3"], generated: Float[np.ndarray, "b v h w 3"]
) -> Float[np.ndarray, "rows columns 3"]:
    """Return one image with two rows per object: the true views above the generated ones."""
    pairs = np.stack([true, generated], 1)  # [b, 2, v, h, w, 3]
    return np.moveaxis(pairs, 2, 3).reshape(-1, pairs.shape[2] * pairs.shape[4], 3)
