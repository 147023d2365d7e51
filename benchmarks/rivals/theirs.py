"""PyTorch's side of ``benchmarks/diffusion.py``: diffusers' modules of the same sizes, one case, served to that script.

The anchor U-Net is diffusers' Stable Diffusion 1.x U-Net, in whose transformer blocks every view attends to all views,
then to its own tokens in both domains, and normals have a feed-forward of their own, as in our network.
"""

import contextlib
import copy
import dataclasses
import time
from typing import Any

import diffusers
import serving
import torch
from absl import app, flags
from torch.utils import flop_counter

from e3d_jax import config as config_lib
from e3d_jax import stages
from e3d_jax.weights import diffusers as formats

flags.DEFINE_enum("case", None, [*serving.CASES, "matmul"], "Case to run.", required=True)
COMPILE = flags.DEFINE_bool("compile", False, "Use torch.compile.")
CUDA = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float32)


class MultiViewBlock(torch.nn.Module):
    """A transformer block of diffusers on (domain, object, view), with the attentions between views and domains."""

    def __init__(self, block: torch.nn.Module, views: int):
        super().__init__()
        self.block, self.views = block, views
        self.norm_joint, self.attn_joint = copy.deepcopy(block.norm1), copy.deepcopy(block.attn1)
        self.ff_normal = copy.deepcopy(block.ff)

    def forward(self, hidden_states, encoder_hidden_states=None, **unused):
        """Tokens [domain x object x view, n, c]."""
        x, block = hidden_states, self.block
        count, tokens, channels = x.shape
        x = x + block.attn1(block.norm1(x).reshape(count // self.views, -1, channels)).reshape(x.shape)
        pairs = self.norm_joint(x).reshape(2, count // 2, tokens, channels).transpose(0, 1)
        joint = self.attn_joint(pairs.reshape(count // 2, 2 * tokens, channels))
        x = x + joint.reshape(count // 2, 2, tokens, channels).transpose(0, 1).reshape(x.shape)
        x = x + block.attn2(block.norm2(x), encoder_hidden_states=encoder_hidden_states)
        color, normal = block.norm3(x).chunk(2)
        return x + torch.cat([block.ff(color), self.ff_normal(normal)])


def unet_of(stage: str, config: config_lib.SystemConfig) -> torch.nn.Module:
    """Build the U-Net of a stage."""
    spec = config[stage].model.unet
    if stage == "interpolation":
        spec = dataclasses.replace(spec, heads=spec.level_heads)
        theirs = _config_json("UNetSpatioTemporalConditionModel", spec)
        theirs.pop("projection_class_embeddings_input_dim_")  # Stable Video Diffusion has no camera labels.
        return diffusers.UNetSpatioTemporalConditionModel(**theirs, num_frames=config.layout.window_frames)
    theirs = _config_json("UNetMV2DConditionModel", spec)
    for blocks in ("down_block_types", "up_block_types"):
        theirs[blocks] = [kind.replace("MV2D", "2D") for kind in theirs[blocks]]
    unet = diffusers.UNet2DConditionModel(**theirs, class_embed_type="projection")
    for module in unet.modules():
        if isinstance(module, diffusers.models.transformers.transformer_2d.Transformer2DModel):
            module.transformer_blocks = torch.nn.ModuleList(
                [MultiViewBlock(block, config.layout.num_anchors + 1) for block in module.transformer_blocks]
            )
    return unet


def _config_json(kind: str, spec: Any) -> dict[str, Any]:
    """Return the sizes of a network as diffusers takes them."""
    theirs = formats.COMPONENTS[kind].config(spec)
    return {name: list(x) if isinstance(x, tuple) else x for name, x in theirs.items()}


def autoencoder_of(stage: str, config: config_lib.SystemConfig) -> torch.nn.Module:
    """Build the autoencoder of a stage."""
    spec = config.autoencoder(stage)
    kind = "AutoencoderKLTemporalDecoder" if spec.temporal_decoder else "AutoencoderKL"
    return getattr(diffusers, kind)(**_config_json(kind, spec))


def random_tensor(*shape: int, dtype: torch.dtype = DTYPE) -> torch.Tensor:
    """Return standard normal values; zeros would run faster than real data."""
    return torch.randn(*shape, device=DEVICE, dtype=dtype)


def unet_inputs(stage: str, config: config_lib.SystemConfig, count: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return inputs of a stage's U-Net for ``count`` objects or windows."""
    unet, side = config[stage].model.unet, config.latent_size(stage)
    images, width = 2 * count * (config.layout.num_anchors + 1), unet.cross_attention_dim
    if stage == "anchor":
        return {
            "sample": random_tensor(images, unet.in_channels, side, side, dtype=dtype),
            "timestep": torch.full((images,), 500, device=DEVICE),
            "encoder_hidden_states": random_tensor(images, 1, width, dtype=dtype),
            "class_labels": random_tensor(images, unet.class_embed_dim, dtype=dtype),
        }
    return {
        "sample": random_tensor(count, config.layout.window_frames, unet.in_channels, side, side, dtype=dtype),
        "timestep": torch.full((count,), 1.0, device=DEVICE),
        "encoder_hidden_states": random_tensor(count, 1, width, dtype=dtype),
        "added_time_ids": random_tensor(count, 3, dtype=dtype),
    }


def call_of(case: str, config: config_lib.SystemConfig):
    """Return a function without a gradient."""
    layout, objects = config.layout, flags.FLAGS.objects
    windows = len(layout.windows) * objects
    if case == "matmul":
        a, b = (random_tensor(*(8192 if CUDA else 2048,) * 2) for _ in range(2))
        return lambda: a @ b
    if case in ("anchor", "interpolation"):
        unet = _ready(unet_of(case, config).to(DEVICE, DTYPE).eval())
        inputs = unet_inputs(case, config, objects if case == "anchor" else windows, DTYPE)
        return lambda: unet(**inputs, return_dict=False)[0]
    if case == "image_encoder":
        import transformers  # Slow to import, and used only here.

        theirs = _config_json("CLIPVisionModelWithProjection", config["interpolation"].model.image_encoder)
        encoder = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**theirs))
        encoder = _ready(encoder.to(DEVICE, DTYPE).eval())
        images = random_tensor(windows, 3, *(theirs["image_size"],) * 2)
        return lambda: encoder(images).image_embeds
    module = autoencoder_of("interpolation" if case == "decode_windows" else "anchor", config).to(DEVICE, DTYPE).eval()
    shape, size = module.config, config.size
    side = size // 2 ** (len(shape.block_out_channels) - 1)
    if case == "encode":
        count = (2 + layout.num_anchors) * objects
        encode, images = _ready(module.encoder), random_tensor(count, shape.in_channels, size, size)
        return lambda: module.quant_conv(encode(images)) if module.quant_conv is not None else encode(images)
    frames = serving.decoded_frames(config)
    count = windows * frames if case == "decode_windows" else 2 * layout.num_anchors * objects
    latents = random_tensor(count, shape.latent_channels, side, side)
    if "Temporal" in type(module).__name__:
        decode, which = _ready(module.decoder), torch.zeros(windows, layout.window_frames, device=DEVICE, dtype=DTYPE)
        return lambda: decode(latents, num_frames=layout.window_frames, image_only_indicator=which)
    decode = _ready(module.decoder)
    return lambda: decode(module.post_quant_conv(latents))


def _ready(module):
    return torch.compile(module) if COMPILE.value else module


def train_step_of(stage: str, config: config_lib.SystemConfig):
    """Return a train step: gradient under autocast, clipping, fused AdamW and EMA, all stored in float32."""
    size = flags.FLAGS.train_objects if stage == "anchor" else flags.FLAGS.train_windows
    unet = unet_of(stage, config).to(DEVICE).train()
    parameters = list(unet.parameters())
    ema = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.01, fused=True)
    inputs = unet_inputs(stage, config, size, torch.float32)
    call = _ready(unet)
    target = torch.randn_like(inputs["sample"][..., : unet.config.out_channels, :, :])

    def run():
        with torch.autocast(DEVICE, torch.bfloat16, enabled=CUDA):
            loss = ((call(**inputs, return_dict=False)[0].float() - target) ** 2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(ema, [parameter.detach() for parameter in parameters], 1e-4)
        return loss

    return run


def prepare(case: str):
    """Build a case, count its FLOPs, and compile it if asked to."""
    torch.manual_seed(0)
    config, training = stages.parse_config(flags.FLAGS.config.to_dict()), case.endswith("_train")
    function = train_step_of(case.removesuffix("_train"), config) if training else call_of(case, config)
    context = contextlib.nullcontext if training else torch.inference_mode

    def run():
        with context():
            function()

    start = time.perf_counter()
    operations = None
    if not COMPILE.value:  # Compiling does not change the count.
        with flop_counter.FlopCounterMode(display=False) as counter:
            run()
        operations = float(counter.get_total_flops())
    for _ in range(3):
        run()
    wait(None)
    seconds = time.perf_counter() - start
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    return run, {"compile_seconds": seconds, "operations": operations}, _peak


def wait(_) -> None:
    """Wait for the device."""
    if CUDA:
        torch.cuda.synchronize()


def _peak() -> dict[str, float]:
    return {"memory": float(torch.cuda.max_memory_allocated())} if CUDA else {}


def main(_) -> None:
    """Serve the case."""
    serving.serve(prepare, wait)


if __name__ == "__main__":
    serving.define_flags()
    app.run(main)
