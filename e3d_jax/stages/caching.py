"""Sources of cached latents: what a stage caches of an object, and how."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Array

from e3d_jax.data import latents as latent_records
from e3d_jax.data import records
from e3d_jax.stages import base

# Images in one pass of the autoencoder, in pixels; bounds its memory.
PIXELS_AT_ONCE = 2**21


class CachedSource(base.Source):
    """Records of what the frozen components make of an object's images, so that training runs without them."""

    stage: ClassVar[str]

    def unpack(self, data: bytes) -> latent_records.Latents:
        """Read a record of cached latents."""
        return latent_records.unpack(data, self.stage)

    @abc.abstractmethod
    def read(self, record: records.Record, config: Any) -> dict[str, np.ndarray]:
        """Decode the images of an object that are cached; the work of the host.

        Raises:
          ValueError: the record lacks some.
        """

    @abc.abstractmethod
    def compute(self, model: Any, frozen: base.Modules, arrays: Any, key: jax.Array, config: Any) -> dict[str, Array]:
        """Compute the cached arrays of an object from what :meth:`read` returns.

        Args:
          model: the stage's module, for its image encoder.
          frozen: modules of the stage's needs by role.
          arrays: of one object.
          key: of all randomness.
          config: of the system.
        """


def in_turns(encode: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Let an encoder take a bounded number of images ``[*b h w 4]`` at once, so that memory does not grow with them."""

    def encode_all(rgba):
        flat = rgba.reshape(-1, *rgba.shape[-3:])
        at_once = max(1, PIXELS_AT_ONCE // (rgba.shape[-3] * rgba.shape[-2]))
        found = jax.lax.map(encode, flat, batch_size=at_once)
        return found.reshape(*rgba.shape[:-3], *found.shape[1:])

    return encode_all


def check_frozen_encoder(stage: str, train: Any) -> None:
    """Refuse to train an image encoder whose tokens are cached.

    Raises:
      ValueError: the stage trains it.
    """
    if train is None or "image_encoder" not in train.freeze:
        raise ValueError(
            f"the {stage} stage trains its image encoder, whose tokens are already in cached latents; freeze it with "
            f"--config.{stage}.train.freeze=\"('image_encoder',)\", or train from images"
        )
