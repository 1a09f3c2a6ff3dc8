"""Turns the sections of a config, which are plain values, into checked dataclasses."""

import dataclasses
import difflib
import functools
import importlib
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from ml_collections import ConfigDict

Section = TypeVar("Section")

_MAX_LISTED = 40  # names in one error message
_UNIONS = (typing.Union, types.UnionType)


class ConfigError(ValueError):
    """A config key is unknown or missing, or its value has a wrong type or cannot be used."""


class UnknownNameError(ConfigError):
    """A name is not in the registry where a config looks for it."""


@dataclasses.dataclass(frozen=True, eq=False)  # hashable by identity, as an annotation must be
class Kinds:
    """Annotates a field that is one of several dataclasses: ``field: Annotated[Base, Kinds(REGISTRY)]``.

    Attributes:
      registry: the dataclasses, subclasses of the base, by the value of their field ``kind``.
    """

    registry: Mapping[str, type]


def read_section(cls: type[Section], values: Any, section: str) -> Section:
    """Builds the frozen dataclass of one section of an experiment from plain values.

    Args:
      cls: the dataclass that reads the section.
      values: the section, a ``ConfigDict`` or a dict; nested dataclasses are dicts too. Values that went
        through JSON are accepted: a list for a tuple, 1 for 1.0. A field whose type is
        ``Annotated[Base, Kinds(REGISTRY)]`` is a section too; its key ``kind`` names its dataclass.
      section: the name of the section, for error messages.

    Raises:
      ConfigError: a key is unknown or missing, a value has the wrong type, or the dataclass refuses it. For
        an unknown key the message contains the nearest known one.
    """
    if not isinstance(values, Mapping | ConfigDict):
        raise ConfigError(f"config.{section} must be a section of keys, not {values!r}")
    hints = _hints(cls)
    found = dict(values.items())
    fields = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    check_keys(found, fields, f"config.{section}")
    arguments = {}
    for name, value in found.items():
        arguments[name] = _from_plain(value, hints[name], f"{section}.{name}")
        _check_type(arguments[name], hints[name], f"config.{section}.{name}")
    try:
        return cls(**arguments)
    except ConfigError:
        raise
    except ValueError as error:
        where = f"config.{section}"
        outer, _, own = where.rpartition(".")
        names_itself = str(error).startswith(f"{own}.")
        raise ConfigError(f"{outer}.{error}" if names_itself else f"{where}: {error}") from error


def check_keys(found: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raises ConfigError unless ``found`` has exactly the names in ``known``; suggests the nearest name."""
    found, known = list(found), list(known)
    for name in found:
        if name not in known:
            hint = nearest(name, known)
            raise ConfigError(f"{where} has no key {name!r}: {hint}")
    missing = [name for name in known if name not in found]
    if missing:
        raise ConfigError(f"{where} lacks the key(s) {', '.join(missing)}")


def check_types(section: Any, name: str) -> None:
    """Raises ConfigError if a field of the dataclass ``section`` has a value of the wrong type."""
    hints = _hints(type(section), include_extras=False)
    for field in dataclasses.fields(section):
        _check_type(getattr(section, field.name), hints[field.name], f"config.{name}.{field.name}")


@functools.cache
def _hints(cls: type, *, include_extras: bool = True) -> dict[str, Any]:
    """Returns the types of the fields of a dataclass; ``Self``, alone or in a union, is the class itself."""
    hints = typing.get_type_hints(cls, include_extras=include_extras)

    def resolved(hint: Any) -> Any:
        options = typing.get_args(hint) if typing.get_origin(hint) in _UNIONS else (hint,)
        if typing.Self not in options:
            return hint
        return typing.Union[tuple(cls if option is typing.Self else option for option in options)]  # noqa: UP007

    return {name: resolved(hint) for name, hint in hints.items()}


def _from_plain(value: Any, hint: Any, section: str) -> Any:
    """Restores what plain values lose: nested dataclasses, tuples, and floats that are whole numbers."""
    options = typing.get_args(hint) if typing.get_origin(hint) in _UNIONS else (hint,)
    for option in options:
        items = typing.get_args(option)
        if typing.get_origin(option) is Annotated:
            return value if isinstance(value, items[0]) else _read_kind(items[1].registry, value, section)
        if dataclasses.is_dataclass(option) and (value is not None or len(options) == 1):
            return read_section(option, value, section)  # type: ignore[arg-type]
        if typing.get_origin(option) is tuple and isinstance(value, list | tuple):
            hints = [items[0]] * len(value) if items[-1] is Ellipsis else items
            if len(hints) != len(value):
                return tuple(value)  # the check of types reports the wrong length
            return tuple(_from_plain(item, hint, section) for item, hint in zip(value, hints, strict=True))
        if option is float and type(value) is int and int not in options:
            return float(value)
    return value


def _read_kind(registry: Mapping[str, type], values: Any, section: str) -> Any:
    """Reads a section whose key ``kind`` says which dataclass of a registry it is."""
    kind = values.get("kind") if isinstance(values, Mapping | ConfigDict) else None
    if not isinstance(kind, str) or kind not in registry:
        raise UnknownNameError(f"config.{section}.kind={kind!r} is unknown: {nearest(kind, registry)}")
    return read_section(registry[kind], values, section)


def _check_type(value: Any, hint: Any, where: str) -> None:
    if _fits(value, hint):
        return
    wanted = str(hint).replace("typing.", "") if typing.get_origin(hint) else hint.__name__
    message = f"{where} must be {wanted}, not {value!r} of type {type(value).__name__}"
    choices = _choices(hint)
    if choices:
        message += ": " + nearest(value, choices)
    raise ConfigError(message)


def _choices(hint: Any) -> list[Any]:
    """Returns the values of a literal type, or of the literal types in a union."""
    options = typing.get_args(hint) if typing.get_origin(hint) in _UNIONS else (hint,)
    return [value for option in options if typing.get_origin(option) is Literal for value in get_args(option)]


def read_fields(
    cls: type, pairs: Iterable[tuple[str, Any]], where: str, names: Iterable[str]
) -> tuple[tuple[str, Any], ...]:
    """Checks pairs of a field of the dataclass ``cls`` and a plain value for it.

    Args:
      cls: the dataclass.
      pairs: names and values; a list stands for a tuple, as in JSON.
      where: what an error calls the pairs.
      names: the fields that may be named.

    Returns:
      The pairs, with each value of the field's type.

    Raises:
      ConfigError: a name is unknown or given twice, or a value has the wrong type.
    """
    hints = _hints(cls)
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name not in names:
            raise ConfigError(f"{where} cannot change {name!r}: {nearest(name, names)}")
        if name in values:
            raise ConfigError(f"{where} names {name!r} twice: give it one value")
        values[name] = _from_plain(value, hints[name], where)
        _check_type(values[name], hints[name], f"{where}, {name}")
    return tuple(values.items())


def nearest(name: Any, known: Iterable[Any]) -> str:
    """Returns a hint for an unknown name: the nearest known name if one is similar, otherwise all of them."""
    names = list(map(str, known))
    near = difflib.get_close_matches(str(name), names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    more = ", ..." if len(names) > _MAX_LISTED else ""
    return f"it has {', '.join(names[:_MAX_LISTED]) or 'none'}{more}"


def import_callable(path: str, key: str, meaning: str) -> Callable[..., Any]:
    """Imports the function or class that a key of a config names as "package.module:name".

    Args:
      path: the value of the key.
      key: the full name of the key, for messages.
      meaning: what ``path`` should name, with its article, for messages.

    Raises:
      ConfigError: ``path`` has another form, nothing is there or it cannot be called, or the module raises an
        error while it is imported.
    """
    module_name, _, name = path.partition(":")
    how = (
        f'Give the "package.module:name" of {meaning}, and start Python where that module can be imported, '
        "such as in its folder or with PYTHONPATH"
    )
    if not all(part.isidentifier() for part in (*module_name.split("."), name)):
        raise ConfigError(f"{key} names {path!r}, which cannot be imported: it has another form. {how}")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        is_missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        if is_missing:
            raise ConfigError(f"{key} names {path!r}, which cannot be imported: {error}. {how}") from error
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"{key} names {path!r}, whose module raised {type(error).__name__} while it was imported: "
            f"{error} ({place.filename}, line {place.lineno})"
        ) from error
    if not hasattr(module, name):
        reason = f"module {module_name!r} has no attribute {name!r}"
        raise ConfigError(f"{key} names {path!r}, which cannot be imported: {reason}. {how}")
    found = getattr(module, name)
    if not callable(found):
        raise ConfigError(f"{key} names {path!r}, a {type(found).__name__}, which cannot be called. {how}")
    return found


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin is Annotated:
        return _fits(value, arguments[0])
    if hint is Any:
        return True
    if origin in _UNIONS:
        return any(_fits(value, argument) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return all(_fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if not isinstance(hint, type):  # such as Mapping[str, int], of which only the Mapping is checked
        return not isinstance(origin, type) or isinstance(value, origin)
    return isinstance(value, hint)
