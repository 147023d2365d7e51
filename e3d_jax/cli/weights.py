"""Import, export, verify and initialize weights."""

from e3d_jax import stores
from e3d_jax.cli.flags import Command, Flags, no_arguments

PIPELINE = "folder in diffusers' format (safetensors), or the id of a Hugging Face repository"
NORMALS = "Omnidata's checkpoint (.ckpt), or weights with a normal estimator"


def _pipelines(flags: Flags) -> None:
    flags.source("anchor", None, f"Stage-1 pipeline: {PIPELINE}.", required=True)
    flags.source("interpolation", None, f"Stage-2 pipeline: {PIPELINE}.", required=True)


def define_import(flags: Flags) -> None:
    """Define the flags of ``import``."""
    _pipelines(flags)
    flags.source("normals", "mini", f"{NORMALS}.")
    flags.target("out", "Weights folder to make.")
    flags.config("envision3d")


def run_import(flags: Flags, arguments: list[str]) -> None:
    """Make a weights folder of both pipelines."""
    from e3d_jax.weights import convert

    no_arguments(arguments)
    pipelines: dict[convert.Stage, str] = {"anchor": flags.anchor, "interpolation": flags.interpolation}
    convert.import_pipelines(pipelines, flags.out, flags.parsed_config(), flags.normals)
    print(stores.named(f"written to {flags.out}"))


def define_export(flags: Flags) -> None:
    """Define the flags of ``export``."""
    flags.source("weights", None, "Weights folder.", required=True)
    flags.choice("dtype", None, ["float16", "bfloat16", "float32"], "Type of the tensors; as stored when not given.")
    flags.target("out", "Folder to make, with anchor/ and interpolation/.")


def run_export(flags: Flags, arguments: list[str]) -> None:
    """Write both pipelines of a weights folder."""
    from e3d_jax.weights import convert

    no_arguments(arguments)
    convert.export_pipelines(flags.weights, flags.out, flags.dtype)
    print(stores.named(f"written to {flags.out}"))


def define_verify(flags: Flags) -> None:
    """Define the flags of ``verify``."""
    _pipelines(flags)
    flags.source("recorded", None, ".npz of the original's inputs and outputs.", required=True)


def run_verify(flags: Flags, arguments: list[str]) -> None:
    """Print a table that compares pipelines with recorded outputs.

    Raises:
      ValueError: an array differs.
    """
    from e3d_jax.weights import convert, verify

    no_arguments(arguments)
    pipelines: dict[convert.Stage, str] = {"anchor": flags.anchor, "interpolation": flags.interpolation}
    rows = list(verify.verify(pipelines, flags.recorded))
    print(verify.table(rows))
    if failed := sum(not row.passed for row in rows):
        raise ValueError(f"{failed} of {len(rows)} arrays differ from the recorded ones")


def define_init(flags: Flags) -> None:
    """Define the flags of ``init``."""
    from e3d_jax.weights import pretrained

    flags.choice("from", None, sorted(pretrained.SOURCES), "Pretrained model.", required=True)
    flags.source("pipeline", None, f"Pipeline of that model: {PIPELINE}.", required=True)
    flags.source("normals", None, f"Normal estimator for training of the anchor stage: {NORMALS}.")
    flags.integer("seed", 0, "Seed of the new layers.")
    flags.target("out", "Weights folder to make.")
    flags.config("envision3d")


def run_init(flags: Flags, arguments: list[str]) -> None:
    """Initialize training of a full-size stage."""
    from e3d_jax.weights import pretrained

    no_arguments(arguments)
    source = getattr(flags, "from")
    pretrained.init_stage(source, flags.pipeline, flags.out, flags.parsed_config(), flags.seed, flags.normals)
    print(stores.named(f"written to {flags.out}"))


def define_from_checkpoint(flags: Flags) -> None:
    """Define the flags of ``from-checkpoint``."""
    flags.string("stage", None, "The stage that was trained.", required=True)
    flags.string("checkpoints", None, "Folder of the run's checkpoints; may be gs://.", required=True)
    flags.integer("step", None, "Which checkpoint; the newest when not given.", at_least=1)
    flags.source("init", None, "Weights folder that the run started from, for what it did not train.")
    flags.target("out", "Weights folder to add the stage to.")
    flags.config("mini")


def run_from_checkpoint(flags: Flags, arguments: list[str]) -> None:
    """Export the EMA weights of a checkpoint."""
    from e3d_jax.training import export

    no_arguments(arguments)
    step = export.export(flags.parsed_config(), flags.stage, flags.checkpoints, flags.step, flags.out, flags.init)
    print(stores.named(f"{flags.stage}: weights of step {step} are in {flags.out}"))


def define_quantize(flags: Flags) -> None:
    """Define the flags of ``quantize``."""
    flags.source("weights", None, "Weights folder.", required=True)
    flags.target("out", "Weights folder to make.")


def run_quantize(flags: Flags, arguments: list[str]) -> None:
    """Halve the size of a weights folder."""
    from e3d_jax.weights import folder

    no_arguments(arguments)
    folder.quantize(flags.weights, flags.out)
    print(stores.named(f"written to {flags.out}"))


def define_merge_lora(flags: Flags) -> None:
    """Define the flags of ``merge-lora``."""
    flags.source("weights", "mini", "Weights folder.")
    flags.string("stage", None, "The stage that the adapters belong to.", required=True)
    flags.source("lora", None, "Their file, in the format of PEFT and diffusers.", required=True)
    flags.target("out", "Weights folder to make.")


def run_merge_lora(flags: Flags, arguments: list[str]) -> None:
    """Add the changes of adapters to weights."""
    from e3d_jax.weights import adapters

    no_arguments(arguments)
    adapters.merge(flags.weights, flags.stage, flags.lora, flags.out)
    print(stores.named(f"written to {flags.out}"))


SUBCOMMANDS = {
    "import": Command(
        define_import,
        run_import,
        "Make a weights folder of both released pipelines.\n\n"
        "e3d weights import --anchor=PIPE1 --interpolation=PIPE2 [--normals=OMNIDATA.ckpt] --out=DIR",
    ),
    "export": Command(
        define_export,
        run_export,
        "Write both pipelines of a weights folder.\n\ne3d weights export --weights=DIR --out=DIR2 [--dtype=float16]",
    ),
    "verify": Command(
        define_verify,
        run_verify,
        "Compare pipelines with recorded outputs of the original modules.\n\n"
        "e3d weights verify --anchor=PIPE1 --interpolation=PIPE2 --recorded=outputs.npz",
    ),
    "init": Command(
        define_init,
        run_init,
        "Start the training of a full-size stage from a pretrained model.\n\n"
        "e3d weights init --from=sd-image-variations|svd --pipeline=PIPE [--normals=OMNIDATA.ckpt] --out=DIR",
    ),
    "from-checkpoint": Command(
        define_from_checkpoint,
        run_from_checkpoint,
        "Export the EMA weights of any checkpoint of a run.\n\n"
        "e3d weights from-checkpoint --config=mini --stage=anchor --checkpoints=DIR --out=DIR2 [--step=N]\n"
        "    [--init=WEIGHTS]\n\n"
        "DIR is WORKDIR/STAGE/checkpoints, or what training was given as --checkpoints. Checkpoints lack what the run\n"
        "did not train (train.freeze), which comes from --init.",
    ),
    "quantize": Command(
        define_quantize,
        run_quantize,
        "Halve the size of a weights folder: kernels in 8 bits, with a scale for each output.\n\n"
        "e3d weights quantize --weights=DIR --out=DIR2\n\n"
        "Such folders are read like any other.",
    ),
    "merge-lora": Command(
        define_merge_lora,
        run_merge_lora,
        "Add the changes of low-rank adapters to weights.\n\n"
        "e3d weights merge-lora --weights=DIR --stage=anchor --lora=FILE.safetensors --out=DIR2",
    ),
}
