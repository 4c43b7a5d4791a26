"""Label names to classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from fedmed_client.data.conventions import totalsegmentator
from fedmed_client.data.labels import annotated, assign, flatten, relabel
from fedmed_common.config import Site, Task
from fedmed_common.errors import LabelError
from fedmed_common.site_config import UNLABELLED

CLASSES = ("liver", "spleen", "tumour")
SOURCE = Path("seg.dcm")


def site_of(table: Mapping[str, tuple[str, ...]], ignored: tuple[str, ...] = ()) -> Site:
    data: dict[str, Any] = {"format": "dicom", "root": "."}
    return Site.model_validate({"name": "a", "data": data, "labels": table, "ignore_labels": ignored})


def test_names_and_codes_are_found_whatever_their_case_and_spaces() -> None:
    site = site_of({"liver": ("Right  Liver", "SCT:10200004"), "spleen": ("milz",)})
    found = [("right liver",), ("Segment 1", "sct:10200004"), (" Milz ",)]
    assert assign(found, site, CLASSES, source=SOURCE) == [1, 1, 2]


def test_ignored_names_and_classes_of_other_experiments_become_background() -> None:
    site = site_of({"liver": ("Liver",), "lung": ("Lung",)}, ("Table",))
    assert assign([("Table",), ("Lung",), ("Liver",)], site, CLASSES, source=SOURCE) == [0, 0, 1]


def test_an_unmapped_name_says_what_was_found_and_which_line_to_add() -> None:
    site = site_of({"liver": ("Liver",)})
    with pytest.raises(LabelError) as caught:
        assign([("Liver",), ("GTV 1", "SCT:4147007")], site, CLASSES, source=SOURCE)
    message = str(caught.value)
    assert all(part in message for part in ("seg.dcm", "'Liver'", "'GTV 1'", "SCT:4147007", "ignore_labels"))
    assert '= ["GTV 1"]' in message


def test_one_label_whose_names_stand_for_two_classes_is_ambiguous() -> None:
    site = site_of({"liver": ("Liver",), "tumour": ("SCT:4147007",)})
    with pytest.raises(LabelError, match=r"ambiguous.*\n.*fix"):
        assign([("Liver", "SCT:4147007")], site, CLASSES, source=SOURCE)


@pytest.mark.parametrize("names", [("Liver",), ("Liver", "SCT:10200004")])
def test_two_names_of_one_class_are_not_ambiguous(names: tuple[str, ...]) -> None:
    site = site_of({"liver": ("liver", "SCT:10200004")})
    assert assign([names], site, CLASSES, source=SOURCE) == [1]


def test_a_name_listed_twice_is_refused() -> None:
    with pytest.raises(LabelError, match="ignore_labels"):
        assign([], site_of({"liver": ("Liver",)}, ("liver ",)), CLASSES, source=SOURCE)
    with pytest.raises(LabelError, match="'spleen'"):
        assign([], site_of({"liver": ("a b",), "spleen": ("a  b",)}), CLASSES, source=SOURCE)


def test_an_empty_list_of_names_means_annotated() -> None:
    assert annotated(site_of({"liver": (), "tumour": ("t",)}), CLASSES) == (True, False, True)


@given(st.data())
def test_the_later_class_wins_in_whatever_order_the_masks_come(data: st.DataObject) -> None:
    shape = (3, 2, 2)
    count = data.draw(st.integers(1, 5))
    masks = [data.draw(hnp.arrays(bool, shape)) for _ in range(count)]
    assignment = data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    expected = np.max([mask * klass for mask, klass in zip(masks, assignment, strict=True)], axis=0)
    order = data.draw(st.permutations(range(count)))
    label = flatten([masks[k] for k in order], [assignment[k] for k in order])
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, expected)


@given(hnp.arrays(np.int64, (3, 3, 2), elements=st.sampled_from([0, 4, 7, 300])))
def test_relabel_is_a_look_up(values: np.ndarray[Any, np.dtype[np.int64]]) -> None:
    label = relabel(values, site_of({"liver": ("300",), "tumour": ("4",)}, ("7",)), CLASSES, source=SOURCE)
    expected = np.select([values == 300, values == 4], [1, 3], 0)
    np.testing.assert_array_equal(label, expected)


def test_what_nobody_looked_at_is_told_apart_from_background() -> None:
    values = np.array([[[0, 1, 2, 9]]])
    site = site_of({"liver": ("2",), "unlabelled": ("9",)}, ("1",))
    assert relabel(values, site, CLASSES, source=SOURCE).tolist() == [[[0, 0, 1, UNLABELLED]]]
    sparse = site_of({"liver": ("2",), "unlabelled": ("0", "9")}, ("1",))
    assert relabel(values, sparse, CLASSES, source=SOURCE).tolist() == [[[UNLABELLED, 0, 1, UNLABELLED]]]
    masks = [np.array([[[1, 1, 0]]], bool), np.array([[[0, 1, 1]]], bool)]
    assigned = assign([("9",), ("2",)], site, CLASSES, source=SOURCE)
    assert flatten(masks, assigned).tolist() == [[[UNLABELLED, UNLABELLED, 1]]]


def test_no_class_is_named_as_what_nobody_looked_at() -> None:
    with pytest.raises(ValidationError, match="name the class otherwise"):
        Task(classes=("unlabelled",))


def test_relabel_refuses_an_unmapped_value() -> None:
    with pytest.raises(LabelError, match="'9'"):
        relabel(np.full((1, 1, 1), 9), site_of({"liver": ("1",)}), CLASSES, source=SOURCE)


def test_numbers_answer_to_the_names_of_the_tool_that_wrote_them() -> None:
    site = site_of(
        {"liver": ("liver",), "spleen": ("1",), "tumour": ("kidney_cyst_left", "kidney_cyst_right")}
    )
    named = site.model_copy(
        update={"data": site.data.model_copy(update={"label_numbers": "totalsegmentator"})}
    )
    values = np.array([[[0, 1, 5, 24, 23, 117, 7]]])
    assert relabel(values, named, CLASSES, source=SOURCE).tolist() == [[[0, 2, 1, 3, 3, 0, 0]]]
    with pytest.raises(LabelError, match="'118'"):
        relabel(np.array([[[5, 118]]]), named, CLASSES, source=SOURCE)
    with pytest.raises(LabelError, match="'5'"):
        relabel(values, site, CLASSES, source=SOURCE)


def test_the_names_of_totalsegmentator_are_in_its_order() -> None:
    names = totalsegmentator()
    known = {
        1: "spleen",
        26: "vertebrae_S1",
        27: "vertebrae_L5",
        50: "vertebrae_C1",
        51: "heart",
        68: "iliac_vena_right",
    }
    known |= {
        69: "humerus_left",
        79: "spinal_cord",
        80: "gluteus_maximus_left",
        90: "brain",
        92: "rib_left_1",
    }
    known |= {115: "rib_right_12", 116: "sternum", 117: "costal_cartilages"}
    assert len(names) == 117
    assert {number: names[str(number)] for number in known} == known
