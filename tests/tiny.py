"""Systems whose networks compile in seconds."""

from e3d_jax import presets, stages


def _smoke():
    """The settings of the smoke variant of the mini system, to be changed."""
    return presets.load("mini:smoke").to_dict()


def config(**training):
    """A system whose normal estimator is tiny, with some settings of its training changed."""
    values = _smoke() | {"size": 32}  # of the tests' records
    unet = {"block_out_channels": [8], "attention_levels": [False], "norm_groups": 4, "heads": 2}
    values["normals"]["model"]["unet"] |= unet
    values["normals"]["train"] |= training
    return stages.parse_config(values)


def system_values():
    """Settings of a system of toy networks; the autoencoder is a convolution or two."""
    values = _smoke()
    autoencoder = {"block_out_channels": (4, 4), "latent_channels": 2, "norm_groups": 2, "mid_attention": False}
    values["autoencoder"]["model"]["kl"] |= autoencoder
    estimator = {"block_out_channels": (4,), "attention_levels": (False,), "norm_groups": 2, "heads": 1}
    values["normals"]["model"]["unet"] |= estimator
    for stage in ("anchor", "interpolation"):
        unet = {"in_channels": 4, "out_channels": 2, "block_out_channels": (4,), "attention_levels": (False,)}
        unet |= {"layers_per_block": 1, "heads": 1, "norm_groups": 2, "cross_attention_dim": 4}
        shape = {"image_size": 32, "patch_size": 16, "num_layers": 1, "heads": 1, "projection_dim": 4}
        values[stage]["model"]["unet"] |= unet
        values[stage]["model"]["image_encoder"] |= shape | {"hidden_size": 8, "intermediate_size": 8}
        values[stage]["train"]["freeze"] = ("image_encoder",)
    return values


def system(size=128):
    """A system of toy networks."""
    return stages.parse_config(system_values() | {"size": size})


class Painter:
    """An autoencoder whose latents are twice the images, in the range of networks."""

    in_channels, scaling_factor, temporal_decoder = 4, 2.0, False

    def encode(self, images):
        return images, images

    def decode(self, latents, num_frames=1):
        return latents
