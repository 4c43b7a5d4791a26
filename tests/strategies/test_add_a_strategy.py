"""What docs/how-to/add-a-strategy.md tells a researcher to write works as it stands there."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from federated import play
from quadratics import Quadratics

from fedmed_common.config import RecipeChoice
from fedmed_strategies.presets import RECIPES
from fedmed_strategies.recipe import Recipe, resolve

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-strategy.md"
FILE, LINE, TESTS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def written(tmp_path: Path) -> Iterator[ModuleType]:
    """The page's file, as a module."""
    (tmp_path / "extrapolated.py").write_text(FILE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("extrapolated", tmp_path / "extrapolated.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["extrapolated"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["extrapolated"]


@pytest.fixture
def presets(written: ModuleType) -> dict[str, Recipe]:
    """The table with the page's line."""
    return RECIPES | eval("{" + LINE + "}", {"Recipe": Recipe, **vars(written)})  # noqa: S307


def test_the_line_makes_a_recipe_that_takes_settings_and_adds_up(presets: dict[str, Recipe]) -> None:
    choice = RecipeChoice(
        name="fedexp", also=("fedprox",), settings={"extrapolated": {"epsilon": 0.5}, "prox": {"mu": 0.2}}
    )
    recipe = resolve(choice, presets)
    assert recipe.aggregator.name == "extrapolated"
    assert getattr(recipe.aggregator, "epsilon", None) == 0.5
    assert [piece.name for piece in recipe.corrections] == ["prox"]


@pytest.mark.parametrize(
    "change", [{"secure": True}, {"central_privacy": RECIPES["central_privacy"].central_privacy}]
)
def test_what_the_page_says_is_refused_is(presets: dict[str, Recipe], change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="'extrapolated' cannot be in it"):
        Recipe(aggregator=presets["fedexp"].aggregator, **change)


def test_the_tests_of_the_page_pass(presets: dict[str, Recipe]) -> None:
    names: dict[str, Any] = {"np": np, "play": play, "Recipe": Recipe, "recipe": presets["fedexp"]}
    exec(TESTS, names)  # noqa: S102
    tests: list[Callable[[], None]] = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


def test_it_is_faster_where_updates_point_apart(presets: dict[str, Recipe]) -> None:
    """Each site has curvature along one axis of its own, and their optima are one: a mean of six takes a sixth of the step."""
    narrow = [np.diag([2.0 if axis == k % 5 else 0.01 for axis in range(5)]) for k in range(5)]
    toy = Quadratics(
        hessians=np.stack(narrow), optima=np.ones((5, 5)), patients=(10,) * 5, steps=(3,) * 5, rate=0.1
    )
    left = {
        name: float(np.linalg.norm(toy.run(presets[name], 8).w - toy.optimum()))
        for name in ("fedavg", "fedexp")
    }
    assert left["fedexp"] < 0.5 * left["fedavg"]
