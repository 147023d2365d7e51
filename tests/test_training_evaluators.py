"""Scores and images of objects that a run never trains on."""

import numpy as np
import pytest

from e3d_jax import stages
from e3d_jax.data import loader
from e3d_jax.training import evaluators, sharding, state, steps
from tests import tiny, toy


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Records of the toy stages."""
    toy.register(monkeypatch)
    return str(toy.write_records(tmp_path))


def _assembled(config, stage):
    """Return a stage with fresh parameters on all devices: its assembly, mesh, parameters and frozen arrays."""
    mesh = sharding.make_mesh(config.system.mesh)
    model = state.build_module(config, stage, dtype="float32")
    roles = stages.get(stage).needs
    components = {role: state.build_module(config, config.provider(stage, role), dtype="float32") for role in roles}
    assembly = steps.assemble(config, stage, model, components, mesh, "float32")
    params = state.place(assembly.params, assembly.stored.params)
    return assembly, mesh, params, state.place(assembly.frozen, assembly.frozen_stored)


def _evaluate(config, stage, dataset, kind="images"):
    assembly, mesh, *inputs = _assembled(config, stage)
    (evaluate,) = evaluators.make_evaluators(config, stage, assembly, mesh, dataset, kind)
    return evaluate(1, *inputs)


def test_a_run_without_held_out_objects_evaluates_nothing(dataset):
    assembly, mesh, *_ = _assembled(toy.config(), "toy")
    assert evaluators.make_evaluators(toy.config(), "toy", assembly, mesh, None, None) == []


def test_held_out_losses_are_those_of_fixed_batches(dataset):
    first, second = (_evaluate(toy.config(), "toy", dataset) for _ in range(2))
    assert first == second and first[0]["heldout/loss"] > 0


def test_a_stage_without_images_shows_none(dataset):
    metrics, images = _evaluate(toy.config(), "toy", dataset)
    assert images == {} and "heldout/psnr" not in metrics


def test_the_psnr_is_that_of_the_mean_error_over_all_images(dataset):
    metrics, _ = _evaluate(toy.config(), "user", dataset)
    config = toy.config()
    _, batch = next(
        loader.make_loader({dataset: 1.0}, toy.User.sources["images"], config, batch_size=4, seed=config.system.seed)
    )
    error = np.mean((np.float32(batch.index) / 10 - 0.5) ** 2)
    assert metrics["heldout/psnr"] == pytest.approx(-10 * np.log10(error), abs=1e-4)


def test_cached_latents_have_no_images_to_compare_with(dataset, tmp_path):
    latents = str(toy.write_records(tmp_path / "latents", kind="latents"))
    metrics, images = _evaluate(toy.config(), "user", latents, "latents")
    assert images == {} and "heldout/psnr" not in metrics


def test_shown_images_are_scored_by_the_metrics_of_views():
    true = np.random.default_rng(0).random((2, 3, 16, 16, 3)).astype(np.float32)
    assert evaluators.image_scores(true, true) == {"sharpness": 1}
    assert evaluators.image_scores(true, true / 2 + 0.25)["sharpness"] == pytest.approx(0.25)


def test_a_sheet_has_true_views_above_generated_ones():
    true = np.arange(2 * 3, dtype=np.float32).reshape(2, 3, 1, 1, 1) * np.ones((1, 1, 4, 5, 3), np.float32)
    sheet = evaluators.make_sheet(true, -true)
    assert sheet.shape == (2 * 2 * 4, 3 * 5, 3)
    np.testing.assert_array_equal(sheet[::4, ::5, 0], [[0, 1, 2], [0, -1, -2], [3, 4, 5], [-3, -4, -5]])


@pytest.mark.slow
def test_anchors_are_sampled_beside_the_true_ones(ball_folder):
    values = tiny.system_values() | {"size": 32, "mesh": {"data": 2, "fsdp": 2, "tensor": 1}}
    config = stages.parse_config(values)
    metrics, images = _evaluate(config, "anchor", str(ball_folder))
    assert np.isfinite(metrics["heldout/loss"]) and np.isfinite(metrics["heldout/psnr"])
    assert images["heldout"].shape == (4 * 2 * 32, 16 * 32, 3)
    _, batch = next(
        loader.make_loader(
            {str(ball_folder): 1.0}, stages.get("anchor").sources["images"], config, batch_size=4, seed=0
        )
    )
    # Images are white where they are empty.
    np.testing.assert_allclose(images["heldout"][:32, :32], batch.targets[0, 0, 0, ..., :3] / 255, atol=1e-5)
