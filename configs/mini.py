"""The mini system, as defined in e3d_jax/presets/mini.py."""

from e3d_jax.presets.mini import get_config

__all__ = ["get_config"]
