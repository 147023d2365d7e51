"""A system whose normal estimator compiles in seconds."""

import json

from configs import mini


def config(**training):
    """Its config, with some settings of the training changed."""
    changed = json.loads(json.dumps(mini.get_config("smoke").to_dict()))
    changed["size"] = 32  # of the tests' records
    changed["normals"]["model"] = {"block_out_channels": [8], "attention_levels": [False], "norm_groups": 4, "heads": 2}
    changed["normals"]["train"] |= training
    return changed


def system():
    """The config of a system of toy networks; the autoencoder is a convolution or two."""
    config = mini.get_config("smoke").to_dict()
    config["autoencoder"]["model"] |= {"block_out_channels": (4, 4), "latent_channels": 2, "norm_groups": 2}
    config["autoencoder"]["model"] |= {"mid_attention": False}
    config["normals"]["model"] = {
        "block_out_channels": (4,),
        "attention_levels": (False,),
        "norm_groups": 2,
        "heads": 1,
    }
    for stage in ("anchor", "interpolation"):
        unet = {"in_channels": 4, "out_channels": 2, "block_out_channels": (4,), "attention_levels": (False,)}
        unet |= {"layers_per_block": 1, "heads": 1, "norm_groups": 2, "cross_attention_dim": 4}
        shape = {"image_size": 32, "patch_size": 16, "num_layers": 1, "heads": 1, "projection_dim": 4}
        config[stage]["model"] = {"unet": unet, "image_encoder": shape | {"hidden_size": 8, "intermediate_size": 8}}
        config[stage]["train"]["freeze"] = ("image_encoder",)
    return config
