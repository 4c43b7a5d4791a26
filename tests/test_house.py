"""The house keeps its own rules: what is documented exists, and what exists is documented."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from pydantic import BaseModel

from fedmed_common import errors, wire
from fedmed_common.catalogue import ARCHITECTURES, Architecture
from fedmed_common.cli import COMMANDS, DEFAULTS
from fedmed_common.config import Experiment, Policy, Site, SiteData
from fedmed_common.site_config import Device, Limits, Network, Schedule
from fedmed_common.tasks import LOSSES, TASKS
from fedmed_strategies.presets import RECIPES

ROOT = Path(__file__).parents[1]
PACKAGES = tuple(
    ROOT / folder / f"fedmed_{folder}"
    for folder in ("common", "strategies", "server", "client", "simulations")
)
SOURCES = tuple(sorted(file for package in PACKAGES for file in package.rglob("*.py")))
PAGES = tuple(sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]))


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys of an experiment; those of a site have a page of their own."""
    for name, field in model.model_fields.items():
        nested = _nested(field.annotation)
        if nested is not None and issubclass(nested, Architecture):
            yield from (f"{prefix}{name}.{key}" for key in ("name", "norm"))
        elif nested is None or nested is Site:
            yield prefix + name
        else:
            yield from _keys(nested, f"{prefix}{name}.")


def _nested(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_nested, getattr(annotation, "__args__", ()))), None)


def test_every_key_of_an_experiment_is_documented() -> None:
    text = (ROOT / "docs" / "experiments.md").read_text()
    assert [key for key in _keys(Experiment) if f"`{key}`" not in text] == []


def test_every_documented_key_exists() -> None:
    text = (ROOT / "docs" / "experiments.md").read_text()
    rows = re.findall(r"^\| ((?:`[a-z_.]+`(?:, )?)+) \|", text, re.MULTILINE)
    documented = {key for row in rows for key in re.findall(r"`([a-z_.]+)`", row) if "." in key}
    assert documented - set(_keys(Experiment)) == set()


@pytest.mark.parametrize("model", [Site, SiteData, Policy, Schedule, Limits, Device, Network])
def test_every_key_of_a_site_is_documented(model: type[BaseModel]) -> None:
    text = (ROOT / "docs" / "site-data.md").read_text()
    table = model.__name__.lower()
    forms = ("`{name}`", "[{name}]", f"`{table}.{{name}}`")
    assert [
        name for name in model.model_fields if not any(form.format(name=name) in text for form in forms)
    ] == []


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_documented_with_its_settings(name: str) -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    section = text.split(f"\n### `{name}`")[1].split("\n### ")[0]
    settings = set(ARCHITECTURES[name].model_fields) - {"name", "norm"}
    assert [key for key in sorted(settings) if f"`model.{key}`" not in section] == []


@pytest.mark.parametrize(
    ("table", "page"),
    [(TASKS, "experiments"), (LOSSES, "experiments"), (RECIPES, "strategies")],
    ids=["tasks", "losses", "recipes"],
)
def test_every_name_that_an_experiment_can_give_is_documented(table: Mapping[str, object], page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    assert [name for name in table if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    ("record", "section"),
    [(wire.Order, "What comes in"), (wire.Reply, "What goes out"), (wire.Facts, "Facts")],
)
def test_the_page_on_what_leaves_a_site_lists_the_wire(record: type, section: str) -> None:
    text = (ROOT / "docs" / "what-leaves-a-site.md").read_text()
    body = text.split(f"\n## {section}")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", body, re.MULTILINE)
    documented = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(documented) == sorted(field.name for field in dataclasses.fields(record))


def test_the_architecture_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    entries = [entry for package in PACKAGES for entry in package.iterdir() if entry.name[0] not in "_."]
    names = {f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries} - {"py.typed"}
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=_relative)
def test_source_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`([\w/]+\.py)`", page.read_text())
    sources = [f"/{_relative(source)}" for source in (*SOURCES, *(ROOT / "tests").rglob("*.py"))]
    assert [name for name in named if not any(source.endswith(f"/{name}") for source in sources)] == []


def test_every_shipped_experiment_is_listed() -> None:
    text = (ROOT / "docs" / "experiments.md").read_text()
    shipped = (ROOT / "simulations" / "fedmed_simulations" / "experiments").glob("*.toml")
    assert [file.stem for file in shipped if f"| `{file.stem}` |" not in text] == []


def test_every_decision_is_listed() -> None:
    listing = (ROOT / "docs" / "decisions" / "README.md").read_text()
    pages = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    assert [page.name for page in pages if f"({page.name})" not in listing] == []


@pytest.mark.parametrize("page", PAGES, ids=_relative)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=_relative)
def test_commands_that_are_shown_exist(page: Path) -> None:
    shown = re.findall(r"(?:`|bin/)fedmed ([a-z]+(?: [a-z]+(?![\w.]))?)", page.read_text())
    unknown = [
        line for line in shown if not {line, line.split()[0]} & COMMANDS.keys() and line not in DEFAULTS
    ]
    assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=_relative)
def test_make_targets_that_are_shown_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    shown = re.findall(r"(?:`|^)make ([a-z]+)", page.read_text(), re.MULTILINE)
    assert [target for target in shown if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


@pytest.mark.parametrize("source", SOURCES, ids=_relative)
def test_a_source_file_says_what_it_is_and_neither_pickles_nor_prints(source: Path) -> None:
    tree = ast.parse(source.read_text())
    assert ast.get_docstring(tree), "a module docstring is missing"
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not {ast.unparse(call.func) for call in calls} & {"torch.save", "eval", "exec", "print"}
    opened = [call for call in calls if ast.unparse(call.func) == "torch.load"]
    assert all("weights_only=True" in map(ast.unparse, call.keywords) for call in opened)


@pytest.mark.parametrize("package", PACKAGES, ids=_relative)
def test_a_package_is_typed(package: Path) -> None:
    assert (package / "py.typed").is_file()


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    def below(error: type[errors.FedmedError]) -> Iterator[type[errors.FedmedError]]:
        yield error
        for child in error.__subclasses__():
            yield from below(child)

    ours = [error for error in below(errors.FedmedError) if error.__module__ == errors.__name__]
    drawn = dict(re.findall(r"(\w+) +([a-z-]+)", (errors.__doc__ or "").split("\n\n")[1]))
    assert {error.__name__: error.code for error in ours} == {
        name: drawn.get(name) for name in (e.__name__ for e in ours)
    }
    assert len({error.code for error in ours}) == len(ours)


def test_what_is_committed_is_source() -> None:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    committed = [ROOT / name for name in listing.stdout.splitlines()]
    assert [_relative(file) for file in committed if file.is_file() and file.stat().st_size > 500_000] == []
