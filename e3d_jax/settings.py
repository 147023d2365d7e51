"""Settings that explain and check themselves.

A group of settings is a frozen dataclass whose fields are made by :func:`setting`: each has its type, meaning, default
and range in one place. :func:`parse` turns the plain mapping of a config file, or of the JSON beside weights, into the
dataclass; missing, unknown and unfit values are refused in one sentence that names the setting.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T", bound="Settings")


def setting(
    doc: str,
    default: Any = dataclasses.MISSING,
    *,
    at_least: int | float | None = None,
    at_most: int | float | None = None,
    above: int | float | None = None,
    below: int | float | None = None,
    choices: tuple[Any, ...] = (),
    resumable: bool = False,
) -> Any:
    """Return a field of a :class:`Settings` class.

    Args:
      doc: what it means, with its unit.
      default: its value when not given; without one the setting is required.
      at_least: the smallest value, of each element if there are several.
      at_most: the largest value.
      above: a value that it must exceed.
      below: a value that it must stay under.
      choices: all values that it can have.
      resumable: whether it may change when a run resumes, because results do not depend on it.
    """
    limits = {"at_least": at_least, "at_most": at_most, "above": above, "below": below, "choices": choices}
    metadata = {"doc": doc, "resumable": resumable, **limits}
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of all groups of settings; values are checked when one is made.

    Raises:
      ValueError: a value is out of range; names the setting.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_range(field.name, getattr(self, field.name), field.metadata)
        self.check()

    def check(self) -> None:
        """Refuse values that do not fit together; overridden where there are such.

        Raises:
          ValueError: names the settings.
        """


def parse(cls: type[T], values: Any, path: str = "") -> T:
    """Make settings of a plain mapping.

    Args:
      cls: which settings.
      values: a mapping by name; nested groups are mappings, sequences may be lists.
      path: of the mapping in the whole config, for messages.

    Raises:
      ValueError: a setting is unknown, missing, of another type or out of range; one sentence names it.
    """
    prefix = f"{path}." if path else ""
    if not isinstance(values, Mapping):
        raise ValueError(f"{path or 'the config'} is {values!r}; expected settings by name")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := sorted(str(name) for name in values if name not in fields):
        raise ValueError(f"unknown setting {prefix}{unknown[0]}; known: {', '.join(sorted(fields)) or 'none'}")
    hints = typing.get_type_hints(cls)
    given = {}
    for name, field in fields.items():
        if name in values:
            given[name] = convert(hints[name], values[name], f"{prefix}{name}")
            check_range(f"{prefix}{name}", given[name], field.metadata)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"missing setting {prefix}{name}: {field.metadata.get('doc', '')}")
    try:
        return cls(**given)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from error


def convert(kind: Any, value: Any, path: str) -> Any:
    """Return a value as the type that a setting declares.

    Raises:
      ValueError: it is of another type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return convert(option, value, path)
            except ValueError:
                continue
        raise ValueError(f"{path} is {value!r}; expected {_type_name(kind)}")
    if kind is types.NoneType and value is None:
        return None
    if isinstance(kind, type) and issubclass(kind, Settings):
        return value if isinstance(value, kind) else parse(kind, value, path)
    if origin is tuple and isinstance(value, list | tuple):
        inner = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(inner) == len(value):
            return tuple(convert(each, x, path) for each, x in zip(inner, value, strict=True))
    if origin is dict and isinstance(value, Mapping):
        return {str(name): convert(arguments[1], x, f"{path}.{name}") for name, x in value.items()}
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind in (str, bool) and isinstance(value, kind):
        return value
    raise ValueError(f"{path} is {value!r}; expected {_type_name(kind)}")


def check_range(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    """Refuse a value outside the limits of :func:`setting`.

    Raises:
      ValueError: names the setting, its value and what is expected.
    """
    expected = []
    values = value if isinstance(value, tuple) else tuple(value.values()) if isinstance(value, dict) else (value,)
    finite = valid = all(not isinstance(each, float) or math.isfinite(each) for each in values)
    for each in values:
        if not isinstance(each, int | float) or isinstance(each, bool):
            continue
        valid &= limits.get("at_least") is None or each >= limits["at_least"]
        valid &= limits.get("above") is None or each > limits["above"]
        valid &= limits.get("at_most") is None or each <= limits["at_most"]
        valid &= limits.get("below") is None or each < limits["below"]
    if not finite:
        expected.append("finite")
    for key in ("at_least", "above", "at_most", "below"):
        if limits.get(key) is not None:
            expected.append(f"{key.replace('_', ' ')} {limits[key]}")
    if choices := limits.get("choices"):
        valid &= value in choices
        expected.append(f"one of {', '.join(map(str, choices))}")
    if not valid:
        raise ValueError(f"{name} is {value!r}; expected {' and '.join(expected)}")


def to_dict(settings: Settings) -> dict[str, Any]:
    """Return settings as a plain mapping of JSON's types, all values included; the inverse of :func:`parse`."""
    return {field.name: _plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def described(cls: type[Settings], path: str = "") -> Iterator[tuple[str, str, Any, str]]:
    """Yield rows (name, type, default, meaning) of all settings of a group and of the groups in it, for help texts."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name = f"{path}.{field.name}" if path else field.name
        kind = hints[field.name]
        if isinstance(kind, type) and issubclass(kind, Settings):
            yield from described(kind, name)
            continue
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        default = "required" if required else field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        yield name, _type_name(kind), default, field.metadata.get("doc", "")


def flatten(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return a nested mapping by dotted names; sequences are values and become tuples."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        full = f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping):
            flat |= flatten(value, full)
        else:
            flat[full] = tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value
    return flat


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Return how two nested mappings of settings differ, one clause each."""
    stored, given = flatten(stored), flatten(given)
    names = sorted(name for name in stored.keys() | given.keys() if stored.get(name) != given.get(name))
    return [f"{name} is {stored.get(name)!r} there and {given.get(name)!r} in the given config" for name in names]


def _type_name(kind: Any) -> str:
    names = {int: "an integer", float: "a number", bool: "True or False", str: "a string", types.NoneType: "None"}
    if kind in names:
        return names[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_type_name, arguments))
    if origin is tuple:
        if arguments[-1] is not ...:
            return f"{len(arguments)} values"
        plural = {int: "integers", float: "numbers", bool: "True or False", str: "strings"}
        return f"a sequence of {plural.get(arguments[0], 'pairs')}"
    return "settings by name"
