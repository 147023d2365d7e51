"""What ships of the base system."""

import pathlib

import jax.numpy as jnp
import numpy as np

from e3d_jax import images, settings, stages
from e3d_jax.models import latents
from e3d_jax.presets import base
from e3d_jax.weights import folder

CAKE = pathlib.Path(__file__).parents[1] / "examples" / "cake.png"
BUNDLED = folder.resolve("base")


def test_bundled_weights_are_those_of_the_config():
    given = stages.parse_config(base.get_config().to_dict())
    assert settings.differences(folder.read_config(BUNDLED).identity(), given.identity()) == []


def test_a_whole_cascade_is_bundled():
    needed = ("autoencoder", "normals", "anchor", "interpolation")
    assert [name for name in needed if not folder.has(BUNDLED, name)] == []


def test_the_bundled_autoencoder_returns_an_image():
    given = images.read_image(CAKE)
    box = images.object_box(given[..., 3])
    image = jnp.asarray(images.crop(given, box, 256))[None]
    autoencoder = folder.restore(BUNDLED, "autoencoder", folder.read_config(BUNDLED))
    found = latents.decode(autoencoder, latents.encode(autoencoder, latents.network_image(image, 4)))
    error = images.over_white(np.asarray(found)) - images.over_white(np.asarray(image))
    assert -10 * np.log10((error**2).mean()) > 32
