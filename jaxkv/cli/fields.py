"""A config's fields as options: those of the very parts that it is made of.

`Train` says that its optimizer is one of several; a run's config has one of them, with
fields of its own. The options of a config are a dataclass like it, whose types are
those of what it holds.
"""

from dataclasses import field, fields, is_dataclass, make_dataclass, replace
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


def options_of(config: Any) -> type:
    """A dataclass of the fields of `config`, whose defaults are its values."""
    hints = get_type_hints(type(config))
    made = []
    for f in fields(config):
        kind, default = _field(hints[f.name], getattr(config, f.name))
        made.append((f.name, kind, field(default_factory=lambda x=default: x)))
    options = make_dataclass(type(config).__name__, made, frozen=True)
    options.__doc__ = type(config).__doc__
    return options


def with_options(config: Any, options: Any) -> Any:
    """`config` with the values of options that `options_of` it made."""
    if is_dataclass(config):
        changed = {
            f.name: with_options(getattr(config, f.name), getattr(options, f.name))
            for f in fields(config)
        }
        return replace(config, **changed)
    if _made_of_parts(config):
        pairs = zip(config, options, strict=True)
        return tuple(with_options(mine, other) for mine, other in pairs)
    return options


def _field(hint: Any, value: Any) -> tuple[Any, Any]:
    """(type, default) of an option."""
    if is_dataclass(value):
        kind = options_of(value)
        return kind, kind()
    if _made_of_parts(value):
        kinds = tuple(options_of(part) for part in value)
        # pyrefly: ignore[not-a-type] - of as many as there are
        return tuple[kinds], tuple(kind() for kind in kinds)
    if get_origin(hint) in (Union, UnionType):
        plain = [one for one in get_args(hint) if _plain(one)]
        # pyrefly: ignore[invalid-annotation]
        hint = Union[tuple(plain)]  # noqa: UP007 - of as many as there are
    return hint, value


def _plain(kind: Any) -> bool:
    """Whether a word of a command line can say it."""
    return kind in (int, float, str, bool, NoneType) or get_origin(kind) is tuple


def _made_of_parts(value: Any) -> bool:
    return isinstance(value, tuple) and any(is_dataclass(part) for part in value)
