"""What a run reads and writes, and every refusal that needs neither devices nor modules, so that it comes at once."""

import dataclasses
import json
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

from e3d_jax import config as config_lib
from e3d_jax import files, settings, stages
from e3d_jax.data import loader
from e3d_jax.training import state
from e3d_jax.weights import folder


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that passed all checks.

    Attributes:
      folder: of its metrics, checkpoints and ``config.json``.
      weights: folder that the trained stage is added to.
      kind: of the records in the datasets, "images" or "latents".
      heldout_kind: of the held-out records; None without them.
      components: frozen components that the stage needs: (component, weights folder) by role.
      identity: what its results depend on; a run that continues must have the same.
      begun: whether there is a run to continue.
    """

    folder: pathlib.Path
    weights: pathlib.Path
    kind: str
    heldout_kind: str | None
    components: Mapping[str, tuple[str, pathlib.Path]]
    identity: Mapping[str, Any]
    begun: bool

    @property
    def uses_components(self) -> bool:
        """Whether training or evaluation computes with the frozen components; cached latents do without them."""
        return "images" in (self.kind, self.heldout_kind)

    def create_folder(self) -> None:
        """Create the run's folder.

        Raises:
          OSError: it cannot be written.
        """
        with files.write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def write_identity(self) -> None:
        """Tie the folder to this run's settings."""
        data = json.dumps(self.identity, indent=2, sort_keys=True).encode()
        files.write_atomically(_identity_path(self.folder), data)


def check_run(
    config: config_lib.SystemConfig,
    stage: str,
    workdir: str,
    datasets: Mapping[str, float],
    init: str | None = None,
    *,
    heldout: str | None = None,
    checkpoints: str | None = None,
    profile: tuple[int, int] | None = None,
) -> Run:
    """Check all that :func:`e3d_jax.training.loop.train` is given; writes nothing.

    Raises:
      ValueError: the config does not train the stage, or not on such records; a folder is not local; the steps to trace
        are not taken; the run, or the weights to start from, belong to another config; the records cannot be used.
      FileNotFoundError: there are no records, or a stage that must be trained first, or the one to start from, is
        missing.
    """
    train = config.training(stage)
    if files.is_remote(workdir):
        raise ValueError(f"{workdir} is not a local folder; 'e3d train' keeps a local copy of one in a store")
    if profile and not 1 <= profile[0] <= profile[1] <= train.steps:
        raise ValueError(f"the steps to trace are {profile[0]} to {profile[1]}; expected some of 1 to {train.steps}")
    weights, run = pathlib.Path(workdir).resolve() / "weights", pathlib.Path(workdir).resolve() / stage
    identity = _check_same_run(run, config, stage)
    folder.check_same_views(weights, config)
    if train.untrained and not init:
        raise ValueError(f"{stage} does not train its {train.untrained}; give weights that have it with --init")
    kind = check_records(datasets, config, stage)
    heldout_kind = check_records({heldout: 1.0}, config, stage) if heldout else None
    components = {}
    for role in stages.get(stage).needs:
        name = config.provider(stage, role)
        source = folder.resolve(init if init and not folder.has(weights, name) else weights)
        # Records of latents do without the component, but the finished system does not; it may be trained later.
        if "images" in (kind, heldout_kind) or folder.has(source, name):
            state.check_architecture(source, name, config)
            components[role] = (name, source)
    begun = _identity_path(run).exists()
    # A run that continues needs its start only for what it does not train.
    if init and (train.untrained or not (begun or checkpoints is not None)):
        state.check_architecture(folder.resolve(init), stage, config)
    return Run(
        folder=run,
        weights=weights,
        kind=kind,
        heldout_kind=heldout_kind,
        components=components,
        identity=identity,
        begun=begun,
    )


def check_records(datasets: Mapping[str, float], config: config_lib.SystemConfig, stage: str) -> str:
    """Return the kind of records that datasets hold, "images" or "latents".

    Raises:
      ValueError: there are both, they do not fit the config, or the stage's settings cannot use them.
      FileNotFoundError: there are no records.
    """
    definition = stages.get(stage)
    kind = loader.kind_of(datasets, definition, config, config.training(stage).max_bad_records)
    definition.check_source(kind, config[stage])
    return kind


def _check_same_run(run: pathlib.Path, config: config_lib.SystemConfig, stage: str) -> dict[str, Any]:
    """Return what the results of a run depend on, after comparing it with what the run's folder is tied to."""
    free = config_lib.resumable(config_lib.TrainSettings)
    if config.training(stage).lr_schedule == "constant":
        # The learning rate does not depend on the length of the run, which may hence be made longer.
        free.add("steps")

    def identity_of(component: config_lib.ComponentConfig) -> dict[str, Any]:
        section = component.to_dict()
        return section | {"train": {name: value for name, value in section["train"].items() if name not in free}}

    views = {"seed": config.system.seed, "size": config.size, "layout": settings.to_dict(config.layout)}
    identity = views | {stage: identity_of(config[stage])}
    path = _identity_path(run)
    stored = _read_identity(path, stage) if path.exists() else None
    if stored is not None:
        # Settings that are new since then have their defaults.
        train = {"steps": config.training(stage).steps} | stored[stage]["train"]
        parsed = stages.parse_component(stages.get(stage), stage, stored[stage] | {"train": train})
        stored[stage] = identity_of(parsed)
        if different := settings.differences(stored, identity):
            raise ValueError(
                f"{run} holds a run of another config: {different[0]}; give that config, choose another --workdir, or "
                "delete that folder"
            )
    return identity


def _read_identity(path: pathlib.Path, stage: str) -> dict[str, Any] | None:
    """Return what a run's folder is tied to; None, with a warning, if its file was damaged by what stopped the run."""
    try:
        stored = json.loads(path.read_bytes())
        if not isinstance(stored[stage]["train"], dict):
            raise TypeError("its section train is not a mapping")
        return stored
    except (ValueError, KeyError, TypeError) as error:
        warnings.warn(
            f"{path} cannot be read ({error}); the run continues as one of the given config, and the file is written "
            "again",
            stacklevel=4,
        )
        return None


def _identity_path(run: pathlib.Path) -> pathlib.Path:
    return run / "config.json"
