"""Single calls compared with the released system: its topology at toy width, random float16 weights, float32 outputs.

``fixtures/released_topology`` holds the weights (safetensors, xz-compressed), the configurations, and inputs and
outputs of the released PyTorch modules in their layout (channels first).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import released

from e3d_jax.weights import verify

CALLS = np.load(released.FIXTURE / "calls.npz")
TOLERANCE = 1e-4  # of the largest magnitude


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Return a function that loads a component through the folder format."""

    def from_folder(name, dtype=jnp.float32):
        return released.load(name, tmp_path_factory.mktemp(name), dtype)

    return from_folder


def channels_last(name):
    return np.moveaxis(CALLS[name], -3, -1)


def relative_error(got, expected):
    assert got.shape == expected.shape
    return np.abs(np.asarray(got) - expected).max() / np.abs(expected).max()


def call(module, *args, method="__call__", **kwargs):
    function = jax.jit(
        lambda module, *args: getattr(module, method)(*args, **kwargs),
        compiler_options={"xla_backend_optimization_level": 0},  # Compiling takes nearly all of the time.
    )
    return function(module, *args)


def test_image_encoder(load):
    got = call(load("image_encoder"), channels_last("clip1_pixels"))
    assert relative_error(got, CALLS["clip1_out"]) < TOLERANCE


@pytest.mark.parametrize(
    "component, latents, mode, decoded, frames",
    [
        ("autoencoder", "vae_mode", "vae_mode", "vae_decoded", 1),
        ("temporal_autoencoder", "vae2_latents", "vae2_mode", "vae2_decoded", 9),
    ],
)
def test_autoencoders(load, component, latents, mode, decoded, frames):
    module = load(component)
    mean, _ = call(module, 2 * channels_last("image") - 1, method="encode")
    assert relative_error(mean, channels_last(mode)) < TOLERANCE
    image = call(module, channels_last(latents), method="decode", num_frames=frames)
    assert relative_error(image, channels_last(decoded)) < TOLERANCE


@pytest.mark.slow
def test_anchor_unet(load):
    views = [
        x.reshape(1, 2, 9, *x.shape[1:])
        for x in (
            channels_last("anchor_unet_sample"),
            CALLS["anchor_unet_image_embeds"],
            CALLS["anchor_unet_camera"],
            channels_last("anchor_unet_out"),
        )
    ]
    got = call(load("anchor_unet"), views[0], jnp.asarray(CALLS["anchor_unet_timestep"]), *views[1:3])
    assert relative_error(got, views[3]) < TOLERANCE


# At toy width, norms over two values amplify rounding: float32 runs differ by 1e-4 between compilers; in float64 only
# the rounding of the reference itself (1.3e-5) is left.
@pytest.mark.slow
@pytest.mark.parametrize("dtype, tolerance", [("float32", 2 * TOLERANCE), ("float64", TOLERANCE / 2)])
def test_interpolation_unet(load, dtype, tolerance):
    inputs = [
        channels_last("interp_unet_sample"),
        CALLS["interp_unet_timestep"],
        CALLS["interp_unet_image_embeds"],
        CALLS["interp_unet_added_time_ids"],
        CALLS["interp_unet_camera"].reshape(2, 9, 6),
    ]
    with jax.enable_x64(dtype == "float64"):
        module = load("interpolation_unet", jnp.dtype(dtype))
        module.order_contexts(verify.released_context_order)
        got = call(module, *(jnp.asarray(x, dtype) for x in inputs))
        assert relative_error(got, channels_last("interp_unet_out")) < tolerance
