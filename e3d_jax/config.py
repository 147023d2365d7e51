"""What a system is and how it is trained: every setting with its meaning, default and range.

A config has settings of the whole system and one section per *component*. A component is a stage of
:mod:`e3d_jax.stages` by its name, or a stage's own copy of a component that it would otherwise share, named
``<stage>_<role>``, such as ``interpolation_autoencoder``. Components that a system does not use may be left out.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from e3d_jax import cameras, settings
from e3d_jax.reconstruction import config as reconstruction_lib

Rules = tuple[tuple[str, str], ...]
RULES: Rules = (("heads", "tensor"), ("mlp", "tensor"), ("embed", "fsdp"), ("out", "fsdp"), ("in", "fsdp"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings(settings.Settings):
    """Devices along each axis of the mesh; -1 for all that are left."""

    data: int = settings.setting("Copies of the parameters; each takes a part of the batch.", -1, at_least=-1)
    fsdp: int = settings.setting("Devices that share the parameters and each take a part of the batch.", 1, at_least=-1)
    tensor: int = settings.setting("Devices that share heads and hidden layers.", 1, at_least=-1)

    def check(self) -> None:
        """Refuse an axis without devices."""
        for field in dataclasses.fields(self):
            if not getattr(self, field.name):
                raise ValueError(f"{field.name} is 0; expected a number of devices, or -1 for all that are left")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSettings(settings.Settings):
    """Which layers learn a low-rank change instead of all their parameters (:mod:`e3d_jax.training.lora`)."""

    rank: int = settings.setting("Rank of the change; 0 trains all parameters.", 0, at_least=0)
    layers: tuple[str, ...] = settings.setting(
        "Parts of the paths of the linear layers that change.", ("to_q", "to_k", "to_v", "to_out")
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings(settings.Settings):
    """How a stage is trained (:mod:`e3d_jax.training.loop`)."""

    batch_size: int = settings.setting("Global batch size, over all devices.", 64, at_least=1)
    grad_accum_steps: int = settings.setting("Gradient-accumulation steps per update.", 1, at_least=1)
    steps: int = settings.setting("Optimizer steps.", at_least=1)
    optimizer: str = settings.setting(
        "adamw, or muon for kernels and Adam for the rest (e3d_jax/training/muon.py).",
        "adamw",
        choices=("adamw", "muon"),
    )
    learning_rate: float = settings.setting("Peak learning rate.", 1e-4, at_least=0)
    warmup_steps: int = settings.setting("Steps of linear warm-up.", 100, at_least=0)
    lr_schedule: str = settings.setting(
        "After the warm-up: cosine decay to zero, or constant.", "cosine", choices=("cosine", "constant")
    )
    lr_multipliers: dict[str, float] = settings.setting(
        "Learning-rate multipliers by part of a parameter's path.", {}, at_least=0
    )
    freeze: tuple[str, ...] = settings.setting("Attributes of the module that are not trained.", ())
    lora: LoraSettings = settings.setting("Low-rank adaptation.", LoraSettings())
    beta2: float = settings.setting("Decay of Adam's second moment.", 0.999, at_least=0, below=1)
    weight_decay: float = settings.setting("Decoupled weight decay of kernels.", 0.01, at_least=0)
    clip_norm: float = settings.setting("Gradients are clipped to this global norm.", 1.0, at_least=0)
    ema_decay: float = settings.setting("EMA decay. The EMA weights are the ones exported.", 0.999, at_least=0, below=1)
    remat: str = settings.setting(
        "What the backward pass recomputes instead of keeping: nothing, whole blocks, or all but matrix products.",
        "none",
        choices=("none", "full", "dots"),
        resumable=True,
    )
    max_consecutive_skips: int = settings.setting(
        "Abort after this many consecutive non-finite steps.", 20, at_least=1, resumable=True
    )
    max_bad_records: int = settings.setting(
        "Damaged records that each process replaces by others before it aborts.", 0, at_least=0, resumable=True
    )
    loader_workers: int = settings.setting("Loader processes; 0 reads in threads.", 12, at_least=0, resumable=True)
    log_every: int = settings.setting("Steps between rows of metrics.", 50, at_least=1, resumable=True)
    checkpoint_every: int = settings.setting("Steps between checkpoints.", 1000, at_least=1, resumable=True)
    keep_last: int = settings.setting("Newest checkpoints to keep.", 2, at_least=1, resumable=True)
    keep_every: int = settings.setting(
        "Checkpoints of multiples of this many steps are kept, too; 0 keeps none.", 0, at_least=0, resumable=True
    )
    evaluate_every: int = settings.setting(
        "Steps between evaluations on held-out objects.", 1000, at_least=1, resumable=True
    )

    @property
    def untrained(self) -> str:
        """What a run does not train, in words; checkpoints lack it, so that it must come from weights."""
        parts = [*self.freeze, *(["kernels, only low-rank changes of them"] if self.lora.rank else [])]
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class ComponentConfig:
    """The settings of one component; their classes are those of its stage.

    Attributes:
      model: its network.
      diffusion: what training and sampling must agree on; None if the stage does not diffuse.
      loss: of its training.
      sampling: how the trained component is used; None if there is nothing to choose.
      train: :class:`TrainSettings` of the run that trains it; None if this config does not train it.
    """

    model: Any
    diffusion: Any = None
    loss: Any = None
    sampling: Any = None
    train: Any = None

    def to_dict(self) -> dict[str, Any]:
        """Return a plain mapping, the sections that are None left out."""
        sections = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: settings.to_dict(section) for name, section in sections.items() if section is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SystemSettings(settings.Settings):
    """Settings of the whole system."""

    size: int = settings.setting("Width and height of the views in pixels.", at_least=32, at_most=2048)
    seed: int = settings.setting("Seed of training.", 0, at_least=0)
    layout: cameras.ViewLayout = settings.setting("The cameras.", cameras.RELEASED)
    inputs: cameras.InputCameras = settings.setting(
        "Input images that records have beside the views.", cameras.InputCameras()
    )
    mesh: MeshSettings = settings.setting("The devices of training.", MeshSettings())
    sharding: Rules = settings.setting(
        "Which logical axis of a parameter is split over which mesh axis, most wanted first "
        "(e3d_jax/training/sharding.py).",
        RULES,
    )
    reconstruction: reconstruction_lib.ReconstructionSettings = settings.setting(
        "How views become a mesh.", reconstruction_lib.ReconstructionSettings()
    )


@dataclasses.dataclass(frozen=True)
class SystemConfig:
    """A whole system: its settings and its components by name (``config["anchor"]``)."""

    system: SystemSettings
    components: Mapping[str, ComponentConfig]

    def __getitem__(self, component: str) -> ComponentConfig:
        try:
            return self.components[component]
        except KeyError:
            known = ", ".join(self.components) or "no component"
            raise ValueError(f"the config has no section {component!r}; it describes {known}; add it") from None

    def __contains__(self, component: str) -> bool:
        return component in self.components

    @property
    def size(self) -> int:
        """Width and height of the views in pixels."""
        return self.system.size

    @property
    def layout(self) -> cameras.ViewLayout:
        """The cameras."""
        return self.system.layout

    def provider(self, stage: str, role: str) -> str:
        """Return the component that plays a role for a stage: the stage's own if there is one, else the shared one."""
        own = f"{stage}_{role}"
        return own if own in self.components else role

    def autoencoder(self, stage: str) -> Any:
        """Return the settings of the autoencoder network whose latents a stage works on."""
        return self[self.provider(stage, "autoencoder")].model.network

    def latent_size(self, stage: str) -> int:
        """Return width and height of a stage's latents."""
        return self.size // self.autoencoder(stage).factor

    def training(self, component: str) -> TrainSettings:
        """Return the settings of the run that trains a component.

        Raises:
          ValueError: the config does not train it.
        """
        train = self[component].train
        if train is None:
            raise ValueError(
                f"the config has no section {component}.train, which says how the {component} is trained; add one, or "
                "use trained weights (--init)"
            )
        return train

    def to_dict(self) -> dict[str, Any]:
        """Return a plain mapping of JSON's types; what config files hold."""
        return settings.to_dict(self.system) | {name: part.to_dict() for name, part in self.components.items()}

    def identity(self) -> dict[str, Any]:
        """Return what weights and config must agree in: the chosen networks, what they are trained for, the views."""
        parts: dict[str, Any] = {"size": self.size, "layout": settings.to_dict(self.layout)}
        # The distance of the cameras changes the mesh's scale alone.
        del parts["layout"]["radius"]
        for name, component in self.components.items():
            model = component.model
            others = set(model.architectures()) - {model.architecture}
            chosen = {key: value for key, value in settings.to_dict(model).items() if key not in others}
            parts[name] = {"model": chosen}
            if component.diffusion is not None:
                parts[name]["diffusion"] = settings.to_dict(component.diffusion)
        return settings.flatten(parts)


def resumable(part: type[settings.Settings]) -> set[str]:
    """Return the names of the settings that may change when a run resumes."""
    return {field.name for field in dataclasses.fields(part) if field.metadata.get("resumable")}
