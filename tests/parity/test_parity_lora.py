"""Low-rank adapters that we write change the networks of diffusers as they change ours."""

import jax
import numpy as np
import pytest
from flax import nnx
from test_parity_models import TOLERANCE, add_silent_cameras, assert_close, call, channels_first, convert, draw  # noqa: F401

from e3d_jax import config as config_lib
from e3d_jax.models import anchor, layers
from e3d_jax.training import lora
from e3d_jax.weights import adapters

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
safetensors_torch = pytest.importorskip("safetensors.torch")

RANK = 3


def random_adapters(network, *parts):
    """Return adapters of a network, with random matrices."""
    chosen = config_lib.LoraSettings(rank=RANK, layers=parts)
    created = lora.create(nnx.state(network, nnx.Param), chosen, 0)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32) / 3, created)


def write(folder, component, found):
    """Write adapters of the network of a component; return what PEFT reads."""
    path = folder / "lora" / adapters.FILE
    adapters.write(path, component, {f"unet.{name}": matrices for name, matrices in found.items()})
    return safetensors_torch.load_file(path)


def test_the_interpolation_network_of_peft_is_ours(convert, tmp_path):  # noqa: F811
    theirs = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        down_block_types=["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
        up_block_types=["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
        layers_per_block=1,
        num_attention_heads=(2, 4),
        cross_attention_dim=24,
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=48,
        num_frames=4,
    )
    module, sample = convert(theirs, add_silent_cameras), draw(1, 4, 8, 8, 8)
    found = random_adapters(module, "to_q", "to_k", "to_v", "to_out", "proj")
    stored = {name.removeprefix("unet."): tensor for name, tensor in write(tmp_path, "interpolation", found).items()}
    targets = sorted({name.partition(".lora_")[0] for name in stored})
    peft.inject_adapter_in_model(peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets), theirs)
    loaded = peft.set_peft_model_state_dict(theirs, stored)
    assert not loaded.unexpected_keys and len(targets) == len(found)

    context, time, added = draw(1, 1, 24, seed=1), np.float32(1.3), np.array([[7, 127, 0.02]], np.float32)
    labels = draw(1, 4, 6, seed=2)
    before = call(module, sample, np.asarray(time), context, added, labels)
    with torch.no_grad():
        given = (channels_first(sample), torch.tensor(time), torch.tensor(context), torch.tensor(added))
        expected = theirs(*given).sample
    nnx.update(module, lora.applied(nnx.state(module, nnx.Param), found))
    after = call(module, sample, np.asarray(time), context, added, labels)
    assert_close(after, expected)
    assert np.abs(after - before).max() > 100 * TOLERANCE * np.abs(before).max()


def test_diffusers_reads_adapters_of_the_anchor_network(tmp_path):
    sizes = {"block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 24}
    theirs = diffusers.UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        **sizes,
    )
    spec = anchor.AnchorUNetSpec(attention_levels=(True, False), heads=2, **sizes)
    ours = anchor.AnchorUNet(spec, layers.Types(rngs=nnx.Rngs(0)))
    found = random_adapters(ours, "attn2", "ff", "proj_in")  # Other attentions are of this network alone.
    theirs.load_lora_adapter(write(tmp_path, "anchor", found), prefix="unet", adapter_name="ours")
    changed = {name: layer for name, layer in theirs.named_modules() if hasattr(layer, "get_delta_weight")}
    assert len(changed) == len(found)
    deltas = [layer.get_delta_weight("ours").detach().numpy() for _, layer in sorted(changed.items())]
    assert {delta.ndim for delta in deltas} == {2, 4}  # The projection is a convolution there.
    wanted = {
        name.replace("ff.proj", "ff.net.0.proj").replace("ff.out", "ff.net.2").replace("to_out", "to_out.0"): x
        for name, x in found.items()
    }
    for name, delta in zip(sorted(changed), deltas, strict=True):
        pair = wanted[f"{name}.kernel"]
        np.testing.assert_allclose(delta.reshape(delta.shape[:2]).T, pair["a"] @ pair["b"], atol=1e-5)
