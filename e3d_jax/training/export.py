"""Add the EMA weights of any checkpoint of a run to a weights folder."""

from e3d_jax import config as config_lib
from e3d_jax.training import checkpoints, sharding, state, steps
from e3d_jax.weights import folder


def export(
    config: config_lib.SystemConfig,
    stage: str,
    source: str,
    step: int | None,
    out: str,
    init: str | None = None,
) -> int:
    """Add a checkpoint's EMA weights to a weights folder; return the step of the checkpoint.

    Args:
      config: of the system.
      stage: the component that was trained.
      source: folder of the checkpoints, local or ``gs://``.
      step: which one; the newest when not given.
      out: weights folder to add to.
      init: weights folder that the run started from; needed for what it did not train.

    Raises:
      FileNotFoundError: there is no checkpoint, or ``init`` lacks the stage.
      ValueError: there is none of that step, it is damaged, or it belongs to another model, or ``init`` does; ``init``
        is needed; the config does not train the stage.
      OSError: the folder cannot be written.
    """
    if (untrained := config.training(stage).untrained) and not init:
        raise ValueError(
            f"checkpoints of the {stage} lack its {untrained}, which the run did not train; give the "
            "weights that the run started from with --init"
        )
    model = state.build_module(config, stage, dtype="float32", seed=config.system.seed)
    if init:
        state.load(folder.resolve(init), stage, config, model)
    mesh = sharding.make_mesh(config_lib.MeshSettings(data=1, fsdp=-1, tensor=1))
    assembly = steps.assemble(config, stage, model, {}, mesh, "float32")
    stored = checkpoints.Checkpoints(source, 1, 0, read_only=True)
    restored = stored.restore(state.like(assembly.params, assembly.optimizer, assembly.stored), step)
    if restored is None:
        raise FileNotFoundError(f"no checkpoint in {source}; give the folder that training writes them to")
    trained = restored[0]
    frozen = state.place(assembly.frozen, assembly.frozen_stored)
    folder.save(out, stage, steps.ema_module(assembly, trained, frozen), config)
    return int(trained.step)
