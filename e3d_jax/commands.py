"""How commands read their flags and config, and end when these, or their inputs, cannot be used."""

import functools
import sys
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import config_flags


def told(main: Callable[[list[str]], None], command: str) -> Callable[[list[str]], None]:
    """A command's ``main`` that ends in a sentence, beginning with its name, where it raises ValueError or OSError."""

    def run_or_exit(arguments):
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax tells of every step it takes.
        try:
            main(arguments)
        except (ValueError, OSError) as error:
            sys.exit(f"{command}: {error}")

    return run_or_exit


def run(main: Callable[[list[str]], None], command: str, path: str) -> None:
    """Runs a command that takes ``--config`` and settings of it (``--config.KEY=VALUE``).

    Args:
      main: is given the positional arguments.
      command: its name in messages.
      path: of the config when none is given.

    Raises:
      SystemExit: a flag, the config or a setting cannot be used, or see :func:`told`; one sentence says which.
    """
    app.run(told(main, command), flags_parser=functools.partial(parse_flags, command, path))


def parse_flags(command: str, path: str, arguments: list[str]) -> list[str]:
    """The positional arguments of a command line; see :func:`run`."""
    try:
        # Defined here because that alone already reads the settings on the command line.
        config_flags.DEFINE_config_file("config", path, "The system.")
        positional = flags.FLAGS(arguments)
        flags.FLAGS.config.to_dict()  # A file that cannot be loaded is reported when it is first looked at.
        return positional
    except Exception as error:
        sys.exit(f"{command}: {_reason(error)}")


def _reason(error: Exception) -> str:
    """What was wrong, in a line. A config is a program, so that it may fail in any way."""
    cause = error.args[0] if error.args and isinstance(error.args[0], KeyError) else error
    lines = str(cause.args[0] if cause.args else "").strip().splitlines()
    if isinstance(cause, KeyError) and lines and lines[0].startswith("'"):
        return "the config has no setting " + "; ".join(lines)
    # The last line says why; those before it, if any, are the path to it.
    why = lines[-1].strip() if lines else ""
    return f"{type(cause).__name__}: {why}" if isinstance(cause, KeyError) or not why else why
