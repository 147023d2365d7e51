"""Files of low-rank adapters are merged into weights, or refused."""

import json

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from e3d_jax.weights import adapters, folder

LAYER = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
KERNEL = LAYER + ".kernel"


@pytest.fixture(scope="module")
def kernel():
    """A kernel of the bundled weights."""
    return folder.read(folder.resolve("mini"), "anchor")[KERNEL].read().astype(np.float32)


@pytest.fixture
def merge(tmp_path, kernel):
    """Write adapters of a layer with PEFT's names, merge them, and return by how much its kernel changes."""

    def merge(change=lambda pair: pair, **settings):
        rng, (inputs, outputs) = np.random.default_rng(0), kernel.shape
        pair = {"A": rng.standard_normal((2, inputs), np.float32), "B": rng.standard_normal((outputs, 2), np.float32)}
        named = {f"{LAYER}.lora_{letter}.weight": matrix for letter, matrix in pair.items()}
        metadata = {"lora_adapter_metadata": json.dumps({f"unet.{name}": x for name, x in settings.items()})}
        safetensors_numpy.save_file(change(named), tmp_path / "lora.safetensors", metadata if settings else None)
        adapters.merge("mini", "anchor", tmp_path / "lora.safetensors", tmp_path / "out")
        return folder.read(tmp_path / "out", "anchor")[KERNEL].read() - kernel, (pair["B"] @ pair["A"]).T

    return merge


def test_the_product_is_added_to_the_kernel(merge):
    changed, product = merge()
    np.testing.assert_allclose(changed, product, atol=0.02 * np.abs(product).max())


def test_the_scale_of_a_file_counts(merge):
    changed, product = merge(r=2, lora_alpha=8)
    np.testing.assert_allclose(changed, 4 * product, atol=0.08 * np.abs(product).max())


def test_everything_else_stays(merge, tmp_path):
    merge()
    mini, out = folder.resolve("mini"), tmp_path / "out"
    assert all(folder.has(out, component) for component in folder.read_config(mini).components)
    before, after = folder.read(mini, "anchor"), folder.read(out, "anchor")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name].read(), after[name].read()) for name in before if name != KERNEL)


@pytest.mark.parametrize("name", ["use_rslora", "alpha_pattern"])
def test_other_scales_are_refused(merge, name):
    with pytest.raises(ValueError, match=f"uses {name}, which is not supported"):
        merge(**{name: {"x": 1}})


def test_adapters_of_something_else_are_refused(merge, tmp_path):
    with pytest.raises(
        ValueError, match=r"holds transformer\.x\.alpha, which belongs to no linear layer of the anchor"
    ):
        merge(lambda named: named | {"transformer.x.alpha": np.ones(1, np.float32)})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda named: dict(list(named.items())[:1]),
        lambda named: {name: array[:, :1] for name, array in named.items()},
    ],
)
def test_matrices_must_fit(merge, change):
    with pytest.raises(ValueError, match=rf"the matrices of {LAYER} do not fit its kernel of shape"):
        merge(change)
