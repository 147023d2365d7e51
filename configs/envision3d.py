"""The envision3d system, as defined in e3d_jax/presets/envision3d.py."""

from e3d_jax.presets.envision3d import get_config

__all__ = ["get_config"]
