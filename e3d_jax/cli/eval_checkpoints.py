"""Score the checkpoints of a run while it trains, on a device of its own.

    e3d eval-checkpoints --config=mini --stage=anchor --workdir=runs/mini [--init=WEIGHTS] [--objects=8] [--nomeshes]

Each new checkpoint, together with the other components in WORKDIR/weights and --init, is a system that is scored as by
'e3d benchmark'. The means go to WORKDIR/STAGE/checkpoint_scores, where metrics.jsonl has a row per checkpoint. Ends
with the checkpoint of the last step; run it again to continue. With --nofollow, it scores what there is and ends.
"""

from e3d_jax.cli.flags import Flags, no_arguments


def define(flags: Flags) -> None:
    """Define the flags."""
    flags.string("stage", None, "The stage in training.", required=True)
    flags.string("workdir", None, "That of the run; may be gs:// or s3://.", required=True)
    flags.string("checkpoints", None, "Folder of the checkpoints, if the run was given one; may be gs://.")
    flags.string("init", None, "Weights for what the run does not train, and for components that WORKDIR lacks.")
    flags.integer("objects", 8, "Number of synthetic test objects.", at_least=1)
    flags.switch("meshes", True, "Also reconstruct and score meshes (most of the run time).")
    flags.switch("follow", True, "Wait for new checkpoints until that of the last step is scored.")
    flags.metric_writers()
    flags.config("mini")


def run(flags: Flags, arguments: list[str]) -> None:
    """Score the checkpoints."""
    from e3d_jax import checkpoint_scores, files, stores

    no_arguments(arguments)
    config = flags.parsed_config()
    with stores.mirrored(files.join(flags.workdir, flags.stage, "checkpoint_scores")) as out:
        checkpoint_scores.score(
            config,
            flags.stage,
            flags.workdir,
            flags.checkpoints or files.join(flags.workdir, flags.stage, "checkpoints"),
            out,
            flags.init,
            objects=flags.objects,
            meshes=flags.meshes,
            follow=flags.follow,
            loggers=flags.chosen_writers(),
        )
