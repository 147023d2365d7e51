"""The base system, as defined in e3d_jax/presets/base.py."""

from e3d_jax.presets.base import get_config

__all__ = ["get_config"]
