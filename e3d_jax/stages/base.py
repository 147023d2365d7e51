"""What a stage is: the one object that says everything the rest of the project needs to know of a trained component."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from e3d_jax import cameras, settings
from e3d_jax import config as config_lib
from e3d_jax.data import records
from e3d_jax.models import layers

Metrics = dict[str, jax.Array]
Modules = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings(settings.Settings):
    """A choice of network: ``architecture`` names it, and the settings of the same name describe it."""

    architecture: str = settings.setting("Which network.")

    @classmethod
    def architectures(cls) -> tuple[str, ...]:
        """Names of the networks to choose from."""
        return cls.__dataclass_fields__["architecture"].metadata["choices"]

    @property
    def network(self) -> Any:
        """Settings of the chosen network."""
        return getattr(self, self.architecture)


class Source(abc.ABC):
    """Records of one kind, as a stage learns from them.

    A batch is a registered dataclass of arrays whose leading axis is the batch; :meth:`example` makes one row of it.
    """

    @abc.abstractmethod
    def unpack(self, data: bytes) -> Any:
        """Read a record.

        Raises:
          ValueError: the bytes are not such a record, or one for another stage.
        """

    @abc.abstractmethod
    def check(self, record: Any, config: config_lib.SystemConfig) -> None:
        """Refuse records that a system of this config cannot learn from; given the first one of each dataset.

        Raises:
          ValueError: says what the records lack and how to make better ones.
        """

    @abc.abstractmethod
    def example(self, record: Any, rng: np.random.Generator, config: config_lib.SystemConfig) -> Any:
        """Make a row of a batch."""

    @abc.abstractmethod
    def spec(self, config: config_lib.SystemConfig) -> Any:
        """Return shapes and types of a row, as ``jax.ShapeDtypeStruct``."""


class ImageSource(Source):
    """Records of images (:mod:`e3d_jax.data.records`)."""

    def unpack(self, data: bytes) -> records.Record:
        """Read a record of images."""
        return records.unpack(data)


class Stage(abc.ABC):
    """A component that is trained: its settings, network, data, loss, and what can be seen of it.

    Attributes:
      name: in configs, on the command line and of its weights.
      needs: roles of the components that it uses without training them.
      sources: what it can learn from, by kind of records: "images", and "latents" if what the frozen components make of
        images can be cached.
      model: class of its ``model`` settings.
      diffusion, loss_settings, sampling: classes of its other settings; None if it has none.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    sources: ClassVar[Mapping[str, Source]]
    model: ClassVar[type[ModelSettings]]
    diffusion: ClassVar[type[settings.Settings] | None] = None
    loss_settings: ClassVar[type[settings.Settings] | None] = None
    sampling: ClassVar[type[settings.Settings] | None] = None

    @abc.abstractmethod
    def build(self, model: Any, types: layers.Types) -> nnx.Module:
        """Make the component with fresh parameters."""

    def check(self, config: config_lib.SystemConfig, component: str) -> None:  # noqa: B027 - most need no check.
        """Refuse settings that do not fit those of other components.

        Raises:
          ValueError: names the settings.
        """

    def check_source(self, kind: str, settings: config_lib.ComponentConfig) -> None:  # noqa: B027
        """Refuse settings that records of a kind cannot serve.

        Raises:
          ValueError: says which, and what to change.
        """

    @abc.abstractmethod
    def loss(
        self,
        model: Any,
        frozen: Modules,
        batch: Any,
        key: jax.Array,
        settings: config_lib.ComponentConfig,
        layout: cameras.ViewLayout,
    ) -> tuple[Float[Array, ""], Metrics]:
        """Return the loss of a batch and scalar metrics.

        Args:
          model: the component in training.
          frozen: modules of :attr:`needs` by role.
          batch: of one of :attr:`sources`.
          key: of all randomness.
          settings: of the component.
          layout: of the system's views.
        """

    def examples_per_object(self, config: config_lib.SystemConfig) -> int:
        """Return how many examples of a batch all views of one object take."""
        return 1

    #: Makes ``(ground truth, generated)`` images ``[b v h w 3]`` of a batch of images, to look at during training, from
    #: (model, frozen, batch, key, settings, layout); None if there is nothing to see.
    show: Callable[..., tuple[Float[Array, "b v h w 3"], Float[Array, "b v h w 3"]]] | None = None
