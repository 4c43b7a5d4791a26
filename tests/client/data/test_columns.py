"""What an index file or a header says of a patient: found by the case's file, by the patient, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedmed_client.data.columns import values_by_patient
from fedmed_common.config import Experiment, Site
from fedmed_common.errors import ConfigError

STEMS = ("p1_a", "p1_b", "p2_a", "p3_a")
Photographs = Callable[..., Path]


@pytest.fixture
def values(
    tmp_path: Path,
    photographs: Photographs,
    make_site: Callable[..., Site],
    make_experiment: Callable[..., Experiment],
) -> Callable[..., dict[int, str]]:
    """``values(text_of_the_index, pattern)`` of a site of four photographs."""
    root = photographs(tmp_path / "folder", STEMS)

    def read(text: str | None, pattern: str | None = None, column: str = "vendor") -> dict[int, str]:
        site = make_site(root, {"nucleus": ("1",)}, format="images", patient_pattern=pattern)
        index = tmp_path / "index.csv"
        if text is not None:
            index.write_text(text, encoding="utf-8")
        return values_by_patient(site, make_experiment(), tmp_path / "home", column, index if text else None)

    return read


def test_rows_belong_to_files_whatever_their_ending(values: Callable[..., dict[int, str]]) -> None:
    text = "image,vendor\np1_a,X\nsub/p1_b.png,Y\np2_a.PNG, x \np3_a,\nother,Z\n"
    assert values(text) == {0: "x", 1: "y", 2: "x", 3: "unknown"}


def test_rows_of_a_patient_agree(values: Callable[..., dict[int, str]]) -> None:
    pattern = r"^(p\d)"
    assert values("case,vendor\np1_a,X\np1_b,x\np2_a,Y\np3_a,Y\n", pattern) == {0: "x", 1: "y", 2: "y"}
    assert values("patient,vendor\np1,X\np2,Y\np3,Y\n", pattern) == {0: "x", 1: "y", 2: "y"}
    with pytest.raises(ConfigError, match="has several values of 'vendor': 'x', 'y'"):
        values("case,vendor\np1_a,X\np1_b,Y\np2_a,Y\np3_a,Y\n", pattern)


def test_rows_of_other_sites_do_not_count(values: Callable[..., dict[int, str]]) -> None:
    rows = "".join(
        f"{site},{stem},{value}\n" for site, value in (("else", "Y"), ("folder", "X")) for stem in STEMS
    )
    assert set(values("site,file,vendor\n" + rows).values()) == {"x"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,maker\np1_a,X\n", "has no column 'vendor'"),
        ("name,vendor\np1_a,X\n", "needs a column file or image or case or patient"),
        ("image,vendor\np1_a,X\n", "says nothing on 3 of the 4 patients of site 'hospital'"),
        ("image,vendor\np1_a,X,Y\n", "row 2 has 3 cells; the header has 2"),
        (None, "format images, whose files do not name a manufacturer"),
    ],
)
def test_what_an_index_lacks_is_said(
    values: Callable[..., dict[int, str]], text: str | None, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        values(text)


def test_an_index_that_is_not_there(
    tmp_path: Path,
    photographs: Photographs,
    make_site: Callable[..., Site],
    make_experiment: Callable[..., Experiment],
) -> None:
    site = make_site(photographs(tmp_path / "folder", STEMS), {"nucleus": ("1",)}, format="images")
    for index, said in ((tmp_path / "none.csv", "no such file"), (tmp_path, "not readable as CSV in UTF-8")):
        with pytest.raises(ConfigError, match=said):
            values_by_patient(site, make_experiment(), tmp_path / "home", "vendor", index)
