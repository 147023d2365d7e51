"""One dialect of flags for all commands, and one way to end in a sentence."""

import contextlib
import logging as python_logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags, logging
from ml_collections import config_flags
from tqdm import tqdm

from e3d_jax import stores

if TYPE_CHECKING:  # It imports JAX, for which not every command should wait.
    from e3d_jax import config as config_lib


class Command(NamedTuple):
    """A command of a module with several.

    Attributes:
      define: defines its flags.
      run: does its work, given the flags and the other arguments.
      doc: its help.
    """

    define: Callable[["Flags"], None]
    run: Callable[["Flags", list[str]], None]
    doc: str


def _spelled(argument: str) -> str:
    """Return a flag with two dashes before its name and underscores in it."""
    name, equals, value = argument.partition("=")
    return "--" + name.lstrip("-").replace("-", "_") + equals + value if re.match(r"--?\w", name) else argument


class Flags:
    """The flags of one call of a command, as attributes: ``flags.out`` is the value of ``--out``.

    Args:
      argv: the command's arguments, without its name.
    """

    def __init__(self, argv: list[str]):
        end = argv.index("--") if "--" in argv else len(argv)
        self._argv, self._others = [_spelled(argument) for argument in argv[:end]], argv[end:]
        self._given = [*self._argv, *self._others]
        self._values = flags.FlagValues()
        self._has_config = False
        self._sources: list[str] = []
        self._targets: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return self._values[name].value

    def string(self, name: str, default: str | None, doc: str, *, required: bool = False) -> None:
        """Define ``--name=TEXT``."""
        flags.DEFINE_string(name, default, doc, flag_values=self._values, required=required)

    def source(self, name: str, default: str | None, doc: str, *, required: bool = False) -> None:
        """Define ``--name=PATH`` of a file or folder to read; a URL becomes the path of a copy."""
        self._sources.append(name)
        self.string(name, default, doc, required=required)

    def target(self, name: str, doc: str) -> None:
        """Define ``--name=PATH`` of a folder to write, which must be given; a URL becomes the path of a copy."""
        self._targets.append(name)
        self.string(name, None, doc, required=True)

    @contextlib.contextmanager
    def local_copies(self) -> Iterator[None]:
        """Put local paths in the places of URLs, and send what was written there at the end.

        Raises:
          OSError: see :func:`e3d_jax.stores.local` and :func:`e3d_jax.stores.mirrored`.
        """
        with contextlib.ExitStack() as stack:
            for name in self._sources:
                if (given := self._values[name].value) is not None:
                    self._values[name].value = stores.local(given)
            for name in self._targets:
                given = str(self._values[name].value)
                self._values[name].value = stack.enter_context(stores.mirrored(given))
            yield

    def strings(self, name: str, doc: str) -> None:
        """Define ``--name=TEXT``, which may be repeated."""
        flags.DEFINE_multi_string(name, None, doc, flag_values=self._values)

    def integer(
        self,
        name: str,
        default: int | None,
        doc: str,
        *,
        at_least: int = 0,
        at_most: int | None = None,
        required: bool = False,
    ) -> None:
        """Define ``--name=NUMBER``."""
        flags.DEFINE_integer(name, default, doc, at_least, at_most, flag_values=self._values, required=required)

    def number(self, name: str, default: float | None, doc: str) -> None:
        """Define ``--name=NUMBER``, at least 0, which need not be whole."""
        flags.DEFINE_float(name, default, doc, 0.0, flag_values=self._values)

    def choice(self, name: str, default: str | None, choices: list[str], doc: str, *, required: bool = False) -> None:
        """Define ``--name=CHOICE``."""
        flags.DEFINE_enum(name, default, choices, doc, flag_values=self._values, required=required)

    def switch(self, name: str, default: bool, doc: str) -> None:
        """Define ``--name`` and ``--noname``."""
        flags.DEFINE_bool(name, default, doc, flag_values=self._values)

    def mesh_files(self) -> None:
        """Define ``--formats``, ``--up``, ``--size`` and ``--webp``: the files of a mesh."""
        self.string("formats", "", "Files of the mesh beside mesh.glb, as in obj,stl: obj, stl, ply, usdz.")
        self.choice("up", "z", ["z", "y"], "Axis that is up in OBJ, STL and PLY files; it is y in GLB and USDZ files.")
        self.number("size", None, "Longest side of the mesh in meters (STL files are in millimeters).")
        self.switch("webp", False, "Store the texture of mesh.glb as WebP: smaller, and lossy.")

    def chosen_mesh_files(self) -> Any:
        """Return the :class:`e3d_jax.mesh.formats.Formats`.

        Raises:
          ValueError: a format is unknown or cannot be written, or the size is 0.
        """
        from e3d_jax.mesh import formats  # Imports much that other commands do without.

        others = tuple(name for name in self.formats.split(",") if name)
        return formats.Formats(others=others, up=self.up, size=self.size, webp=self.webp)

    def metric_writers(self) -> None:
        """Define ``--writers``: where metrics go."""
        doc = "Where metrics go: jsonl, csv, tensorboard, wandb, with commas between."
        self.string("writers", "jsonl,tensorboard", doc)

    def chosen_writers(self) -> list[str]:
        """Return keys of :data:`e3d_jax.training.writers.WRITERS`, which are not checked yet."""
        return self.writers.split(",")

    def runner(self) -> None:
        """Define ``--engine``: what does jobs that make datasets."""
        self.choice("engine", "local", ["local", "beam"], "The processes of this machine, or Apache Beam.")

    def chosen_runner(self, arguments: list[str]) -> Any:
        """Return the :class:`e3d_jax.data.engine.Runner`; the arguments are options of Apache Beam.

        Raises:
          OSError: Apache Beam is missing.
          ValueError: there are arguments, but no use for them.
        """
        if self.engine == "beam":
            from e3d_jax.data import beam  # It is an extra.

            return beam.Runner(arguments)
        from e3d_jax.data import engine

        no_arguments(arguments)
        return engine.write_shards

    def config(self, default: str) -> None:
        """Define ``--config=NAME_OR_FILE[:VARIANT]`` and ``--config.SETTING=VALUE``.

        Raises:
          OSError, ValueError: see :func:`e3d_jax.presets.load`; or a setting does not exist.
        """
        from e3d_jax import presets

        name = self.given("config") or default
        self.settings(presets.load(name))

    def settings(self, config: Any) -> None:
        """Define ``--config.SETTING=VALUE`` for a config that is known already."""
        self._has_config = True
        self._argv = [argument for argument in self._argv if not argument.startswith("--config=")]
        for argument in self._argv:
            if match := re.match(r"--(?:no)?config\.([^=]+)", argument):
                _check_setting(config, match[1])
        config_flags.DEFINE_config_dict("config", config, flag_values=self._values, sys_argv=["e3d", *self._argv])

    def without(self, name: str) -> list[str]:
        """Return the command line without ``--name=VALUE``, to run the command again."""
        return [argument for argument in self._given if not argument.startswith(f"--{name}=")]

    def given(self, name: str) -> str | None:
        """Return the value of ``--name=VALUE`` on the command line, before the flags are parsed."""
        values = [argument.partition("=")[2] for argument in self._argv if argument.startswith(f"--{name}=")]
        return values[-1] if values else None

    def parsed_config(self) -> "config_lib.SystemConfig":
        """Return the config, checked.

        Raises:
          ValueError: see :func:`e3d_jax.stages.parse_config`.
        """
        from e3d_jax import stages

        values: Any = self._values["config"].value
        return stages.parse_config(values.to_dict())

    def parse(self) -> list[str]:
        """Read the command line; return the arguments that are not flags, and all after ``--``.

        Raises:
          flags.Error: a flag does not exist, is missing, or has a bad value.
        """
        for argument in self._argv:
            name = argument.removeprefix("--")
            if argument.startswith("--") and name in self._values and not self._values[name].boolean:
                raise ValueError(f"{argument} has no value; flags are given as {argument}=VALUE")
        return self._values(["e3d", *self._argv, *self._others])[1:]

    def help(self) -> str:
        """Return all flags, and the settings if there is a config, with their meaning."""
        lines = []
        for name in sorted(self._values):
            flag = self._values[name]
            if name != "config" and "." not in name:
                default = "" if flag.default is None else f" (default: {flag.default_as_str})"
                lines.append(f"  --{name}: {flag.help}{default}")
        if self._has_config:
            lines.append("\nSettings (--config.NAME=VALUE):")
            lines += [f"  {name}: {doc}" for name, doc in _described(self.parsed_config())]
        return "\n".join(lines)


def _described(config: "config_lib.SystemConfig"):
    """Yield names and meanings of all settings of a config."""
    from e3d_jax import config as config_lib
    from e3d_jax import settings

    groups: list[tuple[str, type[settings.Settings]]] = [("", config_lib.SystemSettings)]
    for name, component in config.components.items():
        for section in ("model", "diffusion", "loss", "sampling", "train"):
            if (values := getattr(component, section)) is not None:
                groups.append((f"{name}.{section}", type(values)))
    for path, group in groups:
        for name, kind, _, doc in settings.described(group, path):
            yield name, f"{doc} ({kind})"


def _check_setting(config: Any, path: str) -> None:
    """Refuse a setting that does not exist, naming those that do."""
    group: Any = config
    walked: list[str] = []
    for part in path.split("."):
        if not hasattr(group, "keys") or part not in group:
            known = f"; known: {', '.join(sorted(group.keys()))}" if hasattr(group, "keys") else ""
            raise ValueError(f"unknown setting {'.'.join([*walked, part])}{known}")
        group = group[part]
        walked.append(part)


def run(module: ModuleType | Command, command: str, argv: list[str]) -> None:
    """Run a command: define and parse its flags, then do its work.

    Args:
      module: has ``define(flags)`` and ``run(flags, arguments)``.
      command: its name in messages.
      argv: its arguments.

    Raises:
      SystemExit: a flag, the config, a setting or an input cannot be used; one sentence says which.
    """
    # Orbax logs every step it takes.
    logging.set_verbosity(logging.WARNING)
    python_logging.getLogger("orbax").setLevel(python_logging.WARNING)
    given = Flags(argv)
    try:
        module.define(given)
        if any(argument in ("--help", "-h") for argument in argv):
            doc = module.doc if isinstance(module, Command) else module.__doc__ or ""
            print(f"e3d {command}: {doc.strip()}\n\nFlags:\n{given.help()}")
            return
        arguments = given.parse()
        with given.local_copies():
            module.run(given, arguments)
    except (ValueError, OSError, flags.Error) as error:
        sys.exit(stores.named(f"e3d {command}: {_sentence(error)}"))


def _sentence(error: Exception) -> str:
    """Return an error's message in one line; the last line of several says why."""
    if match := re.search(r"[Ff]lag (--\w+) must have a value other than None", str(error)):
        return f"{match[1]} is missing; give {match[1]}=VALUE"
    if match := re.search(r"flag (--[\w.]+)=(.*): invalid literal for int", str(error)):
        return f"{match[1]} is {match[2]!r}; expected an integer"
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    sentence = (lines[-1] if isinstance(error, flags.Error) else " ".join(lines)) if lines else type(error).__name__
    if isinstance(error, flags.UnrecognizedFlagError) and "Did you mean" not in sentence:
        sentence += "; settings are given as --config.SETTING=VALUE"
    return sentence


def show_warnings(command: str) -> None:
    """From now on, print each warning as a line of its own, above progress bars."""
    warnings.showwarning = lambda message, *_, **__: tqdm.write(f"e3d {command}: {message}", sys.stderr)


def no_arguments(arguments: list[str]) -> None:
    """Refuse arguments that are not flags.

    Raises:
      ValueError: names the first.
    """
    if arguments:
        raise ValueError(f"unexpected argument {arguments[0]!r}; flags are given as --name=value")
