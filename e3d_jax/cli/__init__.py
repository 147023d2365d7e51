"""The command line: ``e3d COMMAND``, one module per command.

A command module has a docstring, which is its help, ``define(flags)`` and ``run(flags, arguments)``
(:mod:`e3d_jax.cli.flags`); a module of several commands has them in ``SUBCOMMANDS``. Both are listed in
:data:`COMMANDS`.
"""

import importlib
import sys
from typing import Any

COMMANDS = {
    "infer": "images to views and meshes",
    "app": "the same, on a page and over HTTP",
    "train": "train one stage of a system",
    "eval-checkpoints": "score the checkpoints of a run while it trains",
    "fit": "a mesh from posed views",
    "eval": "compare views or meshes with their ground truth",
    "benchmark": "score a system on held-out objects",
    "data synthetic": "draw training records of synthetic objects",
    "data assets": "draw training records of your own meshes",
    "cache": "cache the latents of training records",
    "plan": "memory and time of training, without its hardware",
    "plan sampling": "memory and time of sampling, without its hardware",
    "plan data": "records, storage, and time that the data of a run takes",
    "weights import": "make a weights folder of released pipelines",
    "weights export": "write a weights folder as pipelines",
    "weights verify": "compare pipelines with recorded outputs",
    "weights init": "start training from Stable Diffusion or Stable Video Diffusion",
    "weights from-checkpoint": "export the EMA weights of a checkpoint",
    "weights quantize": "halve the size of a weights folder",
    "weights merge-lora": "add low-rank adapters to weights",
}


def command(name: str) -> Any:
    """Return what defines and runs a command of :data:`COMMANDS`; see :func:`e3d_jax.cli.flags.run`."""
    first, *second = name.split()
    module = importlib.import_module(f"e3d_jax.cli.{first.replace('-', '_')}")
    return module.SUBCOMMANDS[second[0]] if second else module


def main(argv: list[str] | None = None) -> None:
    """Run the command that the arguments name.

    Raises:
      SystemExit: the command does not exist, or ends in an error; one sentence says why.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            module = command(name)
            from e3d_jax.cli import flags  # After the command, which may prepare the environment of NumPy and JAX.

            flags.run(module, name, arguments[words:])
            return
    listed = "\n".join(f"  {name:24s} {what}" for name, what in COMMANDS.items())
    usage = f"usage: e3d COMMAND [--flag=value ...]\n\n{listed}\n\n'e3d COMMAND --help' explains a command."
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(usage)
        return
    sys.exit(f"e3d: unknown command {' '.join(arguments[:2])!r}\n\n{usage}")
