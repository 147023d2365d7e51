"""DPT-hybrid compared with transformers, with random weights, through a checkpoint in Omnidata's format."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e3d_jax.models import dpt, layers
from e3d_jax.stages import normals
from e3d_jax.weights import omnidata

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# Names of transformers and of the release.
RENAMES = (
    (r"^dpt\.embeddings\.cls_token", "pretrained.model.cls_token"),
    (r"^dpt\.embeddings\.position_embeddings", "pretrained.model.pos_embed"),
    (r"^dpt\.embeddings\.projection", "pretrained.model.patch_embed.proj"),
    (r"^dpt\.embeddings\.backbone\.bit\.", "pretrained.model.patch_embed.backbone."),
    (r"embedder\.convolution", "stem.conv"),
    (r"embedder\.norm", "stem.norm"),
    (r"encoder\.stages\.(\d+)\.layers", r"stages.\1.blocks"),
    (r"^dpt\.encoder\.layer\.(\d+)", r"pretrained.model.blocks.\1"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"(blocks\.\d+)\.output\.dense", r"\1.mlp.fc2"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"^dpt\.layernorm", "pretrained.model.norm"),
    (
        r"^neck\.reassemble_stage\.readout_projects\.(\d)\.0",
        lambda m: f"pretrained.act_postprocess{int(m[1]) + 1}.0.project.0",
    ),
    (r"^neck\.reassemble_stage\.layers\.(\d)\.projection", lambda m: f"pretrained.act_postprocess{int(m[1]) + 1}.3"),
    (r"^neck\.reassemble_stage\.layers\.(\d)\.resize", lambda m: f"pretrained.act_postprocess{int(m[1]) + 1}.4"),
    (r"^neck\.convs\.(\d)", lambda m: f"scratch.layer{int(m[1]) + 1}_rn"),
    (r"^neck\.fusion_stage\.layers\.(\d)", lambda m: f"scratch.refinenet{4 - int(m[1])}"),
    (r"residual_layer(\d)\.convolution(\d)", r"resConfUnit\1.conv\2"),
    (r"(refinenet\d)\.projection", r"\1.out_conv"),
    (r"^head\.head\.", "scratch.output_conv."),
)
TOY = {
    "image_size": 64,
    "stem_width": 16,
    "stage_widths": (32, 64, 96),
    "stage_depths": (2, 1, 2),
    "hidden_size": 32,
    "heads": 4,
    "output_layers": (1, 3),
    "neck_widths": (24, 40),
    "features": 32,
    "norm_groups": 8,
}


def reference(sizes):
    """Return transformers' network of our sizes, with a head of three channels as Omnidata's."""
    backbone = transformers.BitConfig(
        embedding_size=sizes["stem_width"],
        hidden_sizes=list(sizes["stage_widths"]),
        depths=list(sizes["stage_depths"]),
        num_groups=sizes["norm_groups"],
        layer_type="bottleneck",
        global_padding="same",
        embedding_dynamic_padding=True,
        out_features=["stage1", "stage2", "stage3"],
    )
    grid = sizes["image_size"] // 16
    config = transformers.DPTConfig(
        is_hybrid=True,
        backbone_config=backbone,
        backbone_featmap_shape=[1, sizes["stage_widths"][-1], grid, grid],
        image_size=sizes["image_size"],
        hidden_size=sizes["hidden_size"],
        num_hidden_layers=sizes["output_layers"][-1] + 1,
        num_attention_heads=sizes["heads"],
        intermediate_size=4 * sizes["hidden_size"],
        layer_norm_eps=1e-6,
        backbone_out_indices=[0, 1, *sizes["output_layers"]],
        neck_hidden_sizes=[*sizes["stage_widths"][:2], *sizes["neck_widths"]],
        fusion_hidden_size=sizes["features"],
        reassemble_factors=[1, 1, 1, 0.5],
    )
    module = transformers.DPTForDepthEstimation(config).eval()
    module.head.head[4] = torch.nn.Conv2d(32, 3, 1)
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0.02, 1 / max(parameter[0].numel(), 1) ** 0.5)
    for conv in module.neck.convs[2:]:  # so that the transformer matters as much as the finer maps
        torch.nn.init.normal_(conv.weight, 0, 0.5)
    return module


def calibrate(module, pixels):
    """Scale the last layer so that few results for ``pixels`` lie outside [0, 1]."""
    last, relu = module.head.head[4], module.head.head[5]
    module.head.head[5] = torch.nn.Identity()
    raw = module(pixels).predicted_depth
    mean, deviation = raw.mean((0, 2, 3)), 3 * raw.std((0, 2, 3))
    last.weight /= deviation[:, None, None, None]
    last.bias.copy_((last.bias - mean) / deviation + 0.5)
    module.head.head[5] = relu


def released(state):
    """Return a state of transformers with the names and the fused attentions of the release."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    for name in [name for name in renamed if ".attention.attention.query." in name]:
        parts = [renamed.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        renamed[name.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
    return {f"model.{name}": tensor for name, tensor in renamed.items()}


@pytest.mark.parametrize(
    "changes", [{}, {"image_size": 96, "stage_depths": (1, 2, 1), "output_layers": (0, 2), "heads": 2}]
)
def test_normals_of_a_checkpoint(tmp_path, changes):
    sizes = TOY | changes
    theirs = reference(sizes)
    rgb = np.random.default_rng(0).random((2, sizes["image_size"], sizes["image_size"], 3), np.float32)
    with torch.no_grad():
        pixels = torch.tensor(np.moveaxis(rgb, -1, 1))
        calibrate(theirs, pixels)
        expected = theirs(pixels).predicted_depth.clamp(0, 1).numpy()
    torch.save({"epoch": 3, "state_dict": released(theirs.state_dict())}, tmp_path / "normals.ckpt")

    spec = dpt.DPTSpec(**sizes)
    ours = nnx.eval_shape(lambda: dpt.DPTNormalEstimator(spec, layers.Types(rngs=nnx.Rngs(0))))
    state = omnidata.read(tmp_path / "normals.ckpt", normals.Model(architecture="dpt_hybrid", dpt_hybrid=spec))
    for path, parameter in nnx.to_flat_state(nnx.state(ours, nnx.Param)):
        parameter.set_value(jnp.asarray(state[".".join(map(str, path))].read()))
    got = jax.jit(lambda module, rgb: module.encoded(rgb))(ours, rgb)
    assert 0.5 < ((expected > 0) & (expected < 1)).mean() < 1
    np.testing.assert_allclose(np.moveaxis(np.asarray(got), -1, 1), expected, atol=3e-5)
