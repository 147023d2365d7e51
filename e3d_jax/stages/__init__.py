"""The stages of a system: one object each, in one registry.

To add a stage, write a :class:`base.Stage` in a file of its own and add it to :data:`STAGES`, or, from outside of the
package, :func:`register` it (``docs/extending.md``).
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from e3d_jax import config as config_lib
from e3d_jax import settings
from e3d_jax.models import layers
from e3d_jax.stages.anchor import Anchor
from e3d_jax.stages.autoencoder import Autoencoder
from e3d_jax.stages.base import Source, Stage
from e3d_jax.stages.interpolation import Interpolation
from e3d_jax.stages.normals import Normals

__all__ = ["STAGES", "Source", "Stage", "build", "get", "parse_config", "register"]

STAGES: dict[str, Stage] = {stage.name: stage for stage in (Autoencoder(), Normals(), Anchor(), Interpolation())}


def register(stage: Stage) -> None:
    """Add a stage, so that configs may have a component of its name."""
    STAGES[stage.name] = stage


def get(component: str) -> Stage:
    """Return the stage of a component, which is named ``<stage>``, or ``<user>_<stage>`` for a copy of its own.

    Raises:
      ValueError: there is no such stage.
    """
    user, _, role = component.partition("_")
    if component in STAGES:
        return STAGES[component]
    if user in STAGES and role in STAGES[user].needs:
        return STAGES[role]
    raise ValueError(
        f"unknown setting or component {component}; known components: {', '.join(STAGES)}; a stage of your own must be "
        "registered: import its module in the config"
    )


def parse_config(values: Mapping[str, Any]) -> config_lib.SystemConfig:
    """Return the config of a system from a plain mapping (:meth:`e3d_jax.config.SystemConfig.to_dict`).

    Raises:
      ValueError: a setting is unknown, missing, out of range, or does not fit another; one sentence names it.
    """
    system_names = {name for name, *_ in settings.described(config_lib.SystemSettings)}
    system_names = {name.partition(".")[0] for name in system_names}
    components = {name: get(name) for name in values if name not in system_names}
    system = {name: value for name, value in values.items() if name in system_names}
    parsed = config_lib.SystemConfig(
        settings.parse(config_lib.SystemSettings, system),
        {name: parse_component(stage, name, values[name]) for name, stage in components.items()},
    )
    for name, stage in components.items():
        if missing := [role for role in stage.needs if parsed.provider(name, role) not in parsed]:
            raise ValueError(f"the config has no section {missing[0]!r}, which the {name} needs; add it")
        stage.check(parsed, name)
    return parsed


def parse_component(stage: Stage, name: str, values: Any) -> config_lib.ComponentConfig:
    """Return the settings of a component from a plain mapping.

    Raises:
      ValueError: see :func:`parse_config`.
    """
    classes = {
        "model": stage.model,
        "diffusion": stage.diffusion,
        "loss": stage.loss_settings,
        "sampling": stage.sampling,
        "train": config_lib.TrainSettings,
    }
    known = {section: cls for section, cls in classes.items() if cls is not None}
    if not isinstance(values, Mapping):
        raise ValueError(f"{name} is {values!r}; expected the sections {', '.join(known)}")
    if unknown := sorted(section for section in values if section not in known):
        raise ValueError(f"unknown setting {name}.{unknown[0]}; known: {', '.join(known)}")
    # Defaults of a section that is left out apply, except that a component without ``train`` is not trained.
    parts: dict[str, Any] = {
        section: settings.parse(cls, values.get(section, {}), f"{name}.{section}")
        for section, cls in known.items()
        if section in values or section != "train"
    }
    return config_lib.ComponentConfig(**parts)


def build(config: config_lib.SystemConfig, component: str, types: layers.Types) -> nnx.Module:
    """Make a component of a config with fresh parameters.

    Raises:
      ValueError: the config lacks the component.
    """
    return get(component).build(config[component].model, types)
