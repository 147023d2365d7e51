"""Write the averaged weights of any checkpoint of a run to a weights folder.

    python -m e3d_jax.training.export --config=configs/mini.py --stage=anchor --checkpoints=DIR --out=DIR2 [--step=N]
        [--init=WEIGHTS]

DIR is WORKDIR/STAGE/checkpoints, or what train.py was given as ``--checkpoints``; the newest step when none is given.
Checkpoints lack what the run did not train (``train.freeze``), which comes from where the run took it.
"""

import typing

from absl import flags

from e3d_jax import commands, settings
from e3d_jax.models import build
from e3d_jax.training import checkpoints, sharding, state, steps
from e3d_jax.weights import folder


def export(
    config: dict[str, typing.Any],
    stage: build.Component,
    source: str,
    step: int | None,
    out: str,
    init: str | None = None,
) -> int:
    """Add a checkpoint's averaged weights to a weights folder; returns its step.

    Args:
      config: a whole system's.
      stage: the one that was trained.
      source: folder of the checkpoints.
      step: the newest when not given.
      out: the folder to add to.
      init: weights folder that the run started from; needed for what it did not train.

    Raises:
      FileNotFoundError: there is no checkpoint, or ``init`` lacks the stage.
      ValueError: there is none of that step, it is damaged, or of another model; or ``init`` is, or is needed; or a
        setting cannot be trained with.
      OSError: the folder cannot be written.
    """
    settings.check_training(stage, config[stage]["train"])
    if (untrained := config[stage]["train"]["freeze"]) and not init:
        raise ValueError(
            f"checkpoints of the {stage} lack its {', '.join(untrained)}, which it does not train; say with --init "
            "which weights the run started from"
        )
    model = state.build_module(config, stage, dtype="float32", seed=config["seed"])
    if init:
        state.load(folder.resolve(init), stage, config, model)
    mesh = sharding.make_mesh({"data": 1, "fsdp": -1, "tensor": 1})
    assembly = steps.assemble(config, stage, model, {}, mesh, "float32")
    stored = checkpoints.Checkpoints(source, 1, 0, read_only=True)
    restored = stored.restore(state.like(assembly.params, assembly.optimizer, assembly.stored), step)
    if restored is None:
        raise FileNotFoundError(f"no checkpoint in {source}; give the folder that train.py writes them to")
    trained = restored[0]
    frozen = state.place(assembly.frozen, assembly.frozen_stored)
    folder.save(out, stage, steps.averaged(assembly, trained, frozen), config)
    return int(trained.step)


def define_flags() -> None:
    """The options of the command; defined late, so that commands can be imported together."""
    flags.DEFINE_enum("stage", None, build.COMPONENTS, "The stage that is trained.", required=True)
    flags.DEFINE_string("checkpoints", None, "Folder of the run's checkpoints; may be gs://.", required=True)
    flags.DEFINE_integer("step", None, "Which of them.", lower_bound=1)
    flags.DEFINE_string("init", None, "Weights folder that the run started from, for what it did not train.")
    flags.DEFINE_string("out", None, "Weights folder to add the stage to.", required=True)


def main(_) -> None:
    """Exports."""
    given, stage = flags.FLAGS, typing.cast(build.Component, flags.FLAGS.stage)
    step = export(given.config.to_dict(), stage, given.checkpoints, given.step, given.out, given.init)
    print(f"{stage}: weights of step {step} are in {given.out}")


if __name__ == "__main__":
    define_flags()
    commands.run(main, "e3d_jax.training.export", "configs/mini.py")
