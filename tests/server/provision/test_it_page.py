"""The page for IT says what the software declares: each field, one outbound port, and nothing that the page would load."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from fedmed_common.consortium import Certificates, Connection
from fedmed_common.signed_requests import FIELDS, SIGNATURE_HEADER, Stamp
from fedmed_common.wire import Facts, Order, Reply
from fedmed_server.provision.it_page import STAMP_TOLD, draw_page, told

CONNECTION = Connection(
    consortium="Rhein <b>& Ruhr",
    site="north",
    address="fedmed.example.org:9443",
    fingerprint="0123456789abcdef" * 4,
    signer="A" * 43 + "=",
    contact='Ada "<script>" Example, +49 221 555 0100',
)


class _Reader(HTMLParser):
    """The page's words, the code in its cells, and whatever points elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.elsewhere: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.elsewhere += [value or "" for name, value in attrs if name in {"src", "href", "action", "data"}]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def page() -> _Reader:
    reader = _Reader()
    reader.feed(draw_page(CONNECTION, Certificates()))
    return reader


def test_every_field_that_leaves_or_comes_in_has_its_row(page: _Reader) -> None:
    rows = {name for words in page.words for name in words.split(", ")}
    for record in (Reply, Facts, Order, Stamp):
        assert {field.name for field in dataclasses.fields(record)} <= rows
    assert SIGNATURE_HEADER in rows


def test_a_field_that_is_added_to_the_wire_cannot_be_left_out() -> None:
    grown = dataclasses.make_dataclass("Grown", [*FIELDS, "secret"])
    assert [name for names, _ in told(Stamp, STAMP_TOLD) for name in names.split(", ")] == list(FIELDS)
    with pytest.raises(ValueError, match="Grown as they are: secret"):
        told(grown, STAMP_TOLD)
    with pytest.raises(ValueError, match="as they are: ghost"):
        told(Stamp, STAMP_TOLD | {("ghost",): "nothing"})


def test_it_names_the_one_connection_and_whom_to_call(page: _Reader) -> None:
    text = re.sub(r"\s+", " ", " ".join(page.words))
    for said in (
        "north in Rhein <b>& Ruhr",
        "fedmed.example.org:9443",
        "0 inbound ports",
        "1 outbound port",
        'Ada "<script>" Example, +49 221 555 0100',
        "fedmed site stop --home",
        "fedmed site init north.zip",
        "lasts 90 days",
    ):
        assert said in text
    assert "0123 4567 89ab cdef " * 3 in text


def test_it_loads_nothing_and_runs_nothing(page: _Reader) -> None:
    assert page.elsewhere == []
    assert not page.tags & {"script", "iframe", "object", "link", "img", "form"}
    style = draw_page(CONNECTION, Certificates())
    assert "url(" not in style
    assert "@import" not in style
    assert "http://" not in style
