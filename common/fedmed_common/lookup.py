"""Tables of import strings: a name in an experiment becomes the object it stands for, imported on demand."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import Any, TypeVar

from fedmed_common.errors import ConfigError

V = TypeVar("V")


def find(table: Mapping[str, V], name: str, *, field: str) -> V:
    """The entry called ``name``; ``field`` is where the experiment gave it, as ``model.name``.

    Raises:
        ConfigError: no such name; the fix is the nearest one, or the list of all.
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1)
    fix = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(table))}"
    raise ConfigError(f"unknown name '{name}'", field=field, fix=fix)


def load(table: Mapping[str, str], name: str, *, field: str) -> Any:
    """Import what ``table[name]`` says as ``"package.module:attribute"``.

    Raises:
        ConfigError: no such name; see ``find``.
    """
    module, attribute = find(table, name, field=field).split(":")
    return getattr(import_module(module), attribute)
