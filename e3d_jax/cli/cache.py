"""Cache the latents of training records, so that a denoiser trains without its encoders.

    e3d cache --config=envision3d --stage=anchor --weights=DIR --data=DIR2 --out=DIR3 [--shard=I/N] \
        [--engine=beam [-- OPTIONS OF BEAM]]

Needs the stage's image encoder, its autoencoder and, for the anchor stage, the normal estimator in --weights; the image
encoder must be one that training leaves alone (train.freeze). Shards keep their names and those that exist are kept, so
the same call continues an interrupted one; several machines may each do every N-th. Records that cannot be used are
skipped with a line each, and listed in manifest.json.
"""

from e3d_jax.cli.flags import Flags


def define(flags: Flags) -> None:
    """Define the flags."""
    flags.string("stage", None, "The stage to cache for.", required=True)
    flags.string("weights", None, "Weights folder.", required=True)
    flags.string("data", None, "Folder of record shards of images.", required=True)
    flags.string("out", None, "Folder of the new shards.", required=True)
    flags.integer("seed", 0, "Seed of the noise in the anchors of windows.")
    flags.integer("workers", None, "Decoding processes; one per core when not given.", at_least=1)
    flags.string("shard", "0/1", "I/N, I from 0 on: do every N-th shard from the I-th on.")
    flags.runner()
    flags.config("envision3d")


def run(flags: Flags, arguments: list[str]) -> None:
    """Cache the dataset."""
    from e3d_jax.data import engine
    from e3d_jax.training import cache

    counts = cache.cache_dataset(
        flags.parsed_config(),
        flags.stage,
        flags.weights,
        flags.data,
        flags.out,
        seed=flags.seed,
        workers=flags.workers,
        shard=engine.parse_shard(flags.shard),
        runner=flags.chosen_runner(arguments),
    )
    print(f"{counts.made} cached, {counts.already} there already, {counts.skipped} skipped; see {flags.out}")
    if not counts.made and not counts.already:
        raise ValueError(f"nothing could be cached of {flags.data}; the lines above say why")
