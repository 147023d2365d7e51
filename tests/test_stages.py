"""The registry of stages, and the rows of batches that each stage promises."""

import jax
import numpy as np
import pytest
from flax import nnx

from e3d_jax import stages
from e3d_jax.models import layers
from e3d_jax.stages import caching
from tests import tiny, toy

CONFIG = tiny.system(32)


def types(remat="none"):
    return layers.Types(rngs=nnx.Rngs(0), remat=remat)


def built(component, remat="none", config=CONFIG):
    """Build a component without values."""
    return nnx.eval_shape(lambda: stages.build(config, component, types(remat)))


@pytest.mark.parametrize("name", ["autoencoder", "normals", "anchor", "interpolation"])
def test_stages_are_found_by_their_names(name):
    assert stages.get(name) is stages.STAGES[name] and stages.get(name).name == name


def test_a_stages_own_copy_of_a_component_belongs_to_the_stage_of_that_component():
    assert stages.get("interpolation_autoencoder") is stages.STAGES["autoencoder"]


@pytest.mark.parametrize("name", ["magic", "interpolation_normals", "normals_autoencoder", "autoencoder_anchor", ""])
def test_an_unknown_component_is_named_with_the_known_ones(name):
    with pytest.raises(ValueError, match=f"component {name}; known components: autoencoder, normals, anchor, interpol"):
        stages.get(name)


def test_a_registered_stage_is_found(monkeypatch):
    monkeypatch.setattr(stages, "STAGES", dict(stages.STAGES))
    stage = toy.Toy()
    stages.register(stage)
    assert stages.get("toy") is stage


def test_what_a_stage_needs_is_another_stage():
    for stage in stages.STAGES.values():
        assert set(stage.needs) <= stages.STAGES.keys() - {stage.name}


@pytest.mark.parametrize("component", ["anchor", "interpolation"])
def test_a_denoiser_is_stored_under_the_name_of_its_architecture(component):
    names = {path[0] for path, _ in nnx.to_flat_state(nnx.state(built(component), nnx.Param))}
    assert names == {"unet", "image_encoder"}


def test_recomputing_activations_changes_no_parameter():
    states = [nnx.state(built("anchor", remat), nnx.Param) for remat in ("none", "full")]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


def test_recomputing_activations_reaches_the_network():
    assert built("anchor", "dots").network.mid_block.remat == "dots"


def test_a_component_that_the_config_lacks_is_not_built():
    values = tiny.system_values()
    del values["interpolation"]
    with pytest.raises(ValueError, match="the config has no section 'interpolation'"):
        stages.build(stages.parse_config(values), "interpolation", types())


def shapes(row):
    return jax.tree.map(lambda x: (tuple(np.shape(x)), np.result_type(x.dtype)), jax.tree.leaves(row))


@pytest.mark.parametrize("name", stages.STAGES)
def test_rows_of_images_have_the_promised_shapes(name, ball):
    source = stages.get(name).sources["images"]
    row = source.example(ball, np.random.default_rng(0), CONFIG)
    assert shapes(row) == shapes(source.spec(CONFIG))
    assert jax.tree.structure(row) == jax.tree.structure(source.spec(CONFIG))


@pytest.mark.parametrize("name", [name for name, stage in stages.STAGES.items() if "latents" in stage.sources])
def test_latents_are_cached_by_the_stage_itself(name):
    source = stages.get(name).sources["latents"]
    assert isinstance(source, caching.CachedSource) and source.stage == name
