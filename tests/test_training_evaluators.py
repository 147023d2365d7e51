"""Scores and pictures of objects that a run never trains on."""

import itertools

import numpy as np
import pytest
from flax import nnx

from e3d_jax.data import loader
from e3d_jax.models import build
from e3d_jax.training import heldout, losses, sharding, state, steps
from tests import tiny


@pytest.mark.slow
def test_a_sheet_has_true_views_above_sampled_ones(ball_folder):
    stage = "anchor"
    config = tiny.system()
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 1})
    components = {role: build.build(role, config[role]["model"], rngs=nnx.Rngs(0)) for role in losses.NEEDS[stage]}
    model = state.build_module(config, stage, dtype="float32")
    assembly = steps.assemble(config, stage, model, components, mesh, "float32")
    batches = loader.make_loader({str(ball_folder): 1.0}, stage, batch_size=4, seed=0)
    evaluate = heldout.Heldout(config, stage, assembly, mesh, itertools.islice(batches, 1), pictured=True)
    params = state.place(assembly.params, assembly.stored.params)
    scores, sheet = evaluate(params, state.place(assembly.frozen, assembly.frozen_stored))
    assert np.isfinite(scores["heldout/loss"]) and np.isfinite(scores["heldout/psnr"])
    assert sheet.shape == (4 * 2 * 32, 16 * 32, 3)
    first = next(loader.make_loader({str(ball_folder): 1.0}, stage, batch_size=4, seed=0))
    np.testing.assert_allclose(
        sheet[:32, :32], first["target"][0, 0, 0, ..., :3] / 255, atol=1e-5
    )  # pictures are white where empty
