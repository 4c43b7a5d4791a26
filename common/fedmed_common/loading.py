"""Experiment and site files from TOML, and an experiment from an order. An unknown key fails with the nearest known name."""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from fedmed_common.catalogue import ARCHITECTURES, Architecture
from fedmed_common.config import Experiment, Site
from fedmed_common.errors import ConfigError
from fedmed_common.fields import Model

M = TypeVar("M", bound=Model)

_FILES = {"network": ("ca",), "pacs": ("ca", "certificate", "key")}
"""In ``site.toml``, by table: the keys that name files."""


def load_experiment(path: Path) -> Experiment:
    """Read an experiment file; relative folders and ``transfer.weights`` are relative to the file.

    Raises:
        ConfigError: names the file, the field and the fix.
    """
    document = read_toml(path)
    transfer = document.get("transfer")
    if isinstance(transfer, dict) and isinstance(transfer.get("weights"), str):
        transfer["weights"] = resolve(transfer["weights"], path, "transfer.weights")
    simulation = document.get("simulation")
    if isinstance(simulation, dict):
        if isinstance(simulation.get("federation"), str):
            simulation["federation"] = resolve(simulation["federation"], path, "simulation.federation")
        partition = simulation.get("partition")
        if isinstance(partition, dict) and isinstance(partition.get("index"), str):
            partition["index"] = resolve(partition["index"], path, "simulation.partition.index")
        sites = simulation.get("sites")
        for number, site in enumerate(sites if isinstance(sites, list) else ()):
            _resolve_root(site, path, f"simulation.sites[{number}].data.root")
    return validate(Experiment, document, path)


def load_site(path: Path) -> Site:
    """Read a ``site.toml``; relative paths in it are relative to the file.

    Raises:
        ConfigError: names the file, the field and the fix.
    """
    document = read_toml(path)
    _resolve_root(document, path, "data.root")
    for table, keys in _FILES.items():
        fields = document.get(table)
        if not isinstance(fields, dict):
            continue
        for key in keys:
            if isinstance(fields.get(key), str):
                fields[key] = resolve(fields[key], path, f"{table}.{key}")
    return validate(Site, document, path)


def load_file(model: type[M], path: Path) -> M:
    """Read a TOML file that holds one ``model``, with nothing in it relative to the file.

    Raises:
        ConfigError: names the file, the field and the fix.
    """
    return validate(model, read_toml(path), path)


def validate(model: type[M], document: Mapping[str, Any], file: Path | str) -> M:
    """The ``model`` that a document read from ``file`` holds.

    Raises:
        ConfigError: names the file, the field and the fix.
    """
    try:
        return model.model_validate_json(json.dumps(document, default=str), strict=True)
    except ValidationError as error:
        raise as_config_error(model, error, file) from None


def experiment_from_order(text: str) -> Experiment:
    """The experiment as a site receives it.

    Raises:
        ConfigError: the text is not an experiment of this version.
    """
    try:
        return Experiment.model_validate_json(text)
    except ValidationError as error:
        raise as_config_error(Experiment, error, "the order's experiment") from None


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file says.

    Raises:
        ConfigError: it is not there, or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("no such file", file=path, fix="check the path") from None
    except IsADirectoryError:
        raise ConfigError(
            "is a folder, not a TOML file", file=path, fix="name the .toml file inside it"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid TOML: {error}", file=path, fix="correct the line named above") from None
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}", file=path, fix="check the file's permissions"
        ) from None


def _resolve_root(site: object, file: Path, field: str) -> None:
    data = site.get("data") if isinstance(site, dict) else None
    if isinstance(data, dict) and isinstance(data.get("root"), str):
        data["root"] = resolve(data["root"], file, field)


def resolve(text: str, file: Path, field: str) -> str:
    """A path that ``file`` names, with its ``${VARIABLES}`` filled in; a relative one is relative to the file.

    Raises:
        ConfigError: a variable is not set.
    """

    def variable(match: re.Match[str]) -> str:
        value = os.environ.get(match[1])
        if value is None:
            raise ConfigError(
                f"the environment variable {match[1]} is not set",
                file=file,
                field=field,
                fix=f"export {match[1]}=FOLDER",
            )
        return str(Path(value).absolute())

    return str((file.parent / re.sub(r"\$\{(\w+)\}", variable, text)).absolute())


def as_config_error(model: type[Model], error: ValidationError, file: Path | str) -> ConfigError:
    """What is wrong with the document of a model, in our words: the first of its errors, with the field and a fix."""
    first = error.errors(include_url=False)[0]
    location = first["loc"]
    field = _field(location)
    others = [_field(one["loc"]) for one in error.errors(include_url=False)[1:]]
    more = f" (wrong too: {', '.join(dict.fromkeys(others[:3]))})" if others else ""
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        fix = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(sorted(known))}"
        return ConfigError(f"unknown key{more}", file=file, field=field, fix=fix)
    if first["type"] == "missing":
        return ConfigError(f"is missing{more}", file=file, field=field, fix="add it")
    if first["type"] == "union_tag_invalid":
        known, name = list(ARCHITECTURES), str(first["ctx"]["tag"])
        near = difflib.get_close_matches(name, known, n=1)
        fix = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(known))}"
        return ConfigError(f"unknown name '{name}'{more}", file=file, field=f"{field}.name", fix=fix)
    message = first["msg"].removeprefix("Value error, ")
    silent = isinstance(first["input"], dict | Model) or _is_secret(model, location)
    given = "" if silent else f"; given: {str(first['input'])[:80]!r}"
    return ConfigError(f"{message}{more}", file=file, field=field or None, fix=f"correct the value{given}")


def _field(location: tuple[int | str, ...]) -> str:
    return "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in _without_tags(location)
    ).lstrip(".")


def _without_tags(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Pydantic puts the architecture's name between ``model`` and the field."""
    if location[:1] == ("model",) and len(location) > 1 and location[1] in ARCHITECTURES:
        return location[:1] + location[2:]
    return location


def _fields_at(model: type[Model], location: tuple[int | str, ...]) -> list[str]:
    found = _model_at(model, location)
    return list(found.model_fields) if found is not None else []


def _is_secret(model: type[Model], location: tuple[int | str, ...]) -> bool:
    """Whether the field's value is kept out of its model's ``repr``, and so out of messages."""
    owner = _model_at(model, location[:-1])
    field = owner.model_fields.get(str(location[-1])) if owner is not None and location else None
    return field is not None and not field.repr


def _model_at(model: type[Model], location: tuple[int | str, ...]) -> type[Model] | None:
    for part in location:
        if issubclass(model, Architecture) and part in ARCHITECTURES:
            model = ARCHITECTURES[str(part)]
            continue
        if isinstance(part, int) or part not in model.model_fields:
            continue
        nested = _nested_model(model.model_fields[part].annotation)
        if nested is None:
            return None
        model = nested
    return model


def _nested_model(annotation: Any) -> type[Model] | None:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _nested_model(argument)
        if found is not None:
            return found
    return None
