"""Weights in diffusers' folder format: ``python -m e3d_jax.weights {import,export,verify,init} --help``."""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from e3d_jax.weights import convert, starts, verify

SETTINGS = Path(__file__).resolve().parents[2] / "configs" / "envision3d.py"
PIPELINE = "folder in diffusers' format (safetensors), or the id of a Hugging Face repository"


def arguments() -> argparse.ArgumentParser:
    """The four commands and their options."""
    parser = argparse.ArgumentParser(prog="python -m e3d_jax.weights", description="Pipelines in, pipelines out.")
    commands = parser.add_subparsers(dest="command", required=True)
    config = argparse.ArgumentParser(add_help=False)
    config.add_argument("--config", default=str(SETTINGS), help="settings other than the sizes")
    pipelines = argparse.ArgumentParser(add_help=False)
    pipelines.add_argument("--anchor", required=True, help=f"stage-1 pipeline: {PIPELINE}")
    pipelines.add_argument("--interpolation", required=True, help=f"stage-2 pipeline: {PIPELINE}")

    command = commands.add_parser("import", parents=[pipelines, config], help="a weights folder from both pipelines")
    command.add_argument(
        "--normals", default="mini", help="Omnidata's checkpoint (.ckpt), or weights with an estimator"
    )
    command.add_argument("--out", required=True, help="weights folder to make")

    command = commands.add_parser("export", help="both pipelines from a weights folder")
    command.add_argument("--weights", required=True, help="weights folder")
    command.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), help="as stored if not given")
    command.add_argument("--out", required=True, help="folder to make, with anchor/ and interpolation/")

    command = commands.add_parser("verify", parents=[pipelines], help="compare with recorded outputs")
    command.add_argument("--recorded", required=True, help=".npz of the original's inputs and outputs")

    command = commands.add_parser("init", parents=[config], help="where training of a full-size stage starts")
    command.add_argument("--from", dest="source", choices=sorted(starts.SOURCES), required=True)
    command.add_argument("--pipeline", required=True, help=PIPELINE)
    command.add_argument("--normals", help="estimator to train the anchor stage beside, as for import")
    command.add_argument("--seed", type=int, default=0, help="of the new layers")
    command.add_argument("--out", required=True, help="weights folder to make")
    return parser


def read_settings(file: str) -> dict[str, Any]:
    """What ``get_config()`` of a config file returns; of FILE:VARIANT, ``get_config(VARIANT)``.

    Raises:
      OSError: there is no such file.
      ValueError: it is no config.
    """
    name, _, variant = file.partition(":")
    path = Path(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise FileNotFoundError(f"no config at {path}; give --config=configs/envision3d.py of the repository")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config(*[variant] if variant else []).to_dict()
    except Exception as error:  # A config is a program: it may fail in any way.
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{path} is no config ({type(error).__name__}: {reason}); see configs/envision3d.py"
        ) from error


def main(argv: list[str] | None = None) -> None:
    """Run one command; bad input ends in one sentence."""
    given = arguments().parse_args(argv)
    try:
        _run(given)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def _run(given: argparse.Namespace) -> None:
    if given.command == "verify":
        rows = list(verify.verify({"anchor": given.anchor, "interpolation": given.interpolation}, given.recorded))
        print(verify.table(rows))
        failed = sum(not row.passed for row in rows)
        if failed:
            sys.exit(f"error: {failed} of {len(rows)} arrays differ from the recorded ones")
        return
    if given.command == "export":
        convert.export_pipelines(given.weights, given.out, given.dtype)
    elif given.command == "init":
        settings = read_settings(given.config)
        starts.init_stage(given.source, given.pipeline, given.out, settings, given.seed, given.normals)
    else:
        pipelines: dict[convert.Stage, Any] = {"anchor": given.anchor, "interpolation": given.interpolation}
        convert.import_pipelines(pipelines, given.out, read_settings(given.config), given.normals)
    print(f"written to {given.out}")


if __name__ == "__main__":
    main()
