"""Write the averaged weights of any checkpoint of a run to a weights folder.

    python -m e3d_jax.training.export --config=configs/mini.py --stage=anchor --checkpoints=DIR --out=DIR2 [--step=N]

DIR is WORKDIR/STAGE/checkpoints, or what train.py was given as ``--checkpoints``; the newest step when none is given.
"""

import typing

from absl import flags

from e3d_jax import commands
from e3d_jax.models import build
from e3d_jax.training import checkpoints, sharding, state, steps
from e3d_jax.weights import folder


def export(config: dict[str, typing.Any], stage: build.Component, source: str, step: int | None, out: str) -> int:
    """Add a checkpoint's averaged weights to a weights folder; returns its step.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: there is none of that step, or it is of another model.
      OSError: the folder cannot be written.
    """
    model = state.build_module(config, stage, dtype="float32", seed=config["seed"])
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
    flags.DEFINE_string("out", None, "Weights folder to add the stage to.", required=True)


def main(_) -> None:
    """Exports."""
    stage = typing.cast(build.Component, flags.FLAGS.stage)
    step = export(flags.FLAGS.config.to_dict(), stage, flags.FLAGS.checkpoints, flags.FLAGS.step, flags.FLAGS.out)
    print(f"{stage}: weights of step {step} are in {flags.FLAGS.out}")


if __name__ == "__main__":
    define_flags()
    commands.run(main, "e3d_jax.training.export", "configs/mini.py")
