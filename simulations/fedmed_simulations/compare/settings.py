"""The comparison file: who is compared, under which seeds, and what each may try before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from fedmed_common.errors import ConfigError
from fedmed_common.fields import Model, Name
from fedmed_common.loading import read_toml, resolve, validate

Kind = Literal["federation", "pooled", "local"]
"""Where a competitor trains: at all sites together, on pooled data, at each site alone."""

FEDAVG, POOLED, LOCAL = "fedavg", "pooled", "local"
LIKE = "fedavg-like-"
"""Before a candidate's name: FedAvg with its loss and sampler."""

Values = tuple[Any, ...]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Candidate(Model):
    """One strategy. ``changes`` and ``grid`` name fields of the experiment, as ``train.learning_rate``."""

    name: Name
    kind: Kind = "federation"
    changes: dict[str, Any] = Field(default_factory=dict, description="field -> value")
    grid: dict[str, Annotated[Values, Field(min_length=1)]] = Field(
        default_factory=dict,
        description="field -> values, of which every combination is tried; absent: the comparison's grid",
    )


class Held(Model):
    """Test patients from elsewhere, in place of those that each site holds out."""

    federation: Path = Field(
        description="folder whose subfolders hold a site.toml each, named as the sites; {seed} in it is the seed"
    )


class Groups(Model):
    """Which classes count as frequent, and which as rare."""

    head: tuple[str, ...]
    medium: tuple[str, ...] = ()
    tail: tuple[str, ...]


class Comparison(Model):
    """One TOML file."""

    name: Name
    experiment: str = Field(description="the experiment that all share: a file, or one that ships")
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (1, 2, 3, 4, 5)
    tuning_seeds: tuple[Seed, ...] = Field(
        (), description="under which settings are chosen; absent: the first seed"
    )
    reference: Name = FEDAVG
    federations: Path | None = Field(
        None,
        description="in the place of simulation.federation: a folder for each seed, with {seed} in its name",
    )
    pooled_steps: Literal["site", "total"] = Field(
        "site", description="how many steps pooled training takes: as many as one site, or as all"
    )
    draws: Annotated[int, Field(ge=100, le=1_000_000)] = Field(4000, description="of the bootstrap")
    grid: dict[str, Annotated[Values, Field(min_length=1)]] = Field(
        default_factory=dict, description="what everybody tries who has no grid, and what fills smaller ones"
    )
    groups: Groups | None = Field(None, description="absent: thirds of the classes by training patients")
    test: Held | None = None
    candidates: tuple[Candidate, ...] = ()

    @field_validator("seeds", "tuning_seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("a seed is named twice")
        return seeds

    @field_validator("federations")
    @classmethod
    def _for_each_seed(cls, folder: Path | None) -> Path | None:
        if folder is not None and "{seed}" not in str(folder):
            raise ValueError(
                "needs {seed} in it, as 'federations/{seed}'; one folder for all is simulation.federation"
            )
        return folder

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [candidate.name for candidate in self.candidates]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two candidates are called '{name}'")
            if name in {FEDAVG, POOLED, LOCAL} or name.startswith(LIKE):
                raise ValueError(
                    f"'{name}' is the name of a baseline, which is always there; call the candidate otherwise"
                )
        return self

    @property
    def tuned_under(self) -> tuple[int, ...]:
        """The seeds under which settings are chosen."""
        return self.tuning_seeds or self.seeds[:1]


def load_comparison(file: Path) -> Comparison:
    """Read a comparison file; ``federations`` and ``test.federation`` are relative to it. Nested tables of ``grid`` are dotted
    fields.

    Raises:
        ConfigError: names the file, the field and the fix.
    """
    document = read_toml(file)
    test = document.get("test")
    if isinstance(test, dict) and isinstance(test.get("federation"), str):
        test["federation"] = resolve(test["federation"], file, "test.federation")
    if isinstance(document.get("federations"), str):
        document["federations"] = resolve(document["federations"], file, "federations")
    candidates = document.get("candidates", [])
    for table in [document, *(candidates if isinstance(candidates, list) else [])]:
        if isinstance(table, dict) and isinstance(table.get("grid"), dict):
            table["grid"] = flat(table["grid"])
    return validate(Comparison, document, file)


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted names: ``{"a": {"b": 1}}`` is ``{"a.b": 1}``."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def changed(document: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """The document with another value at a dotted field. A table is merged into what is there, unless it has a ``name``."""
    first, _, rest = field.partition(".")
    there = document.get(first)
    if rest:
        return {**document, first: changed(there if isinstance(there, dict) else {}, rest, value)}
    if isinstance(value, dict) and isinstance(there, dict) and "name" not in value:
        for name, inner in value.items():
            there = changed(there, name, inner)
        return {**document, first: there}
    return {**document, first: value}


def check_groups(comparison: Comparison, classes: Sequence[str], file: Path) -> None:
    """Whether the groups have each class once, where the file gives groups.

    Raises:
        ConfigError: names the class.
    """
    groups = comparison.groups
    if groups is None:
        return
    named = [*groups.head, *groups.medium, *groups.tail]
    wrong = [f"'{name}' is no class" for name in named if name not in classes]
    wrong += [f"'{name}' is in two groups" for name in named if named.count(name) > 1]
    wrong += [f"'{name}' is in no group" for name in classes if name not in named]
    if wrong:
        raise ConfigError(
            wrong[0], file=file, field="groups", fix=f"name each class once: {', '.join(classes)}"
        )
