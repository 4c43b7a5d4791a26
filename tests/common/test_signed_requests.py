"""A signed request is the key holder's, unaltered; anything else is refused with one reason."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fedmed_common.errors import RequestRefused
from fedmed_common.signed_requests import (
    FIELDS,
    REFUSALS,
    SIGNATURE_HEADER,
    Stamp,
    header_of,
    installed_version,
    read_stamp,
    sign,
    verify,
    works_with,
)

KEY = ec.generate_private_key(ec.SECP256R1())
PATH = "/v1/fleet/pull-messages"


def _stamp() -> Stamp:
    return Stamp.new(site="alpha", instance="ab12", boot="cd34")


def test_what_was_signed_is_what_is_read() -> None:
    stamp = _stamp()
    headers = sign(KEY, "POST", PATH, b"body", stamp)
    assert verify(KEY.public_key(), "POST", PATH, b"body", headers) == stamp == read_stamp(headers)
    assert stamp.version == installed_version()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("PUT", PATH, b"body"), ("POST", "/v1/fleet/push-messages", b"body"), ("POST", PATH, b"other")],
)
def test_another_request_is_refused(method: str, path: str, body: bytes) -> None:
    headers = sign(KEY, "POST", PATH, b"body", _stamp())
    with pytest.raises(RequestRefused, match="signature"):
        verify(KEY.public_key(), method, path, body, headers)


@pytest.mark.parametrize("field", FIELDS)
def test_an_altered_or_missing_field_is_refused(field: str) -> None:
    headers = sign(KEY, "POST", PATH, b"body", _stamp())
    other = {"version": "9.9.9", "time": "1.000", "nonce": "0" * 32}.get(field, "ef56")
    for changed in ({**headers, header_of(field): other}, headers | {header_of(field): ""}):
        with pytest.raises(RequestRefused, match="signature"):
            verify(KEY.public_key(), "POST", PATH, b"body", changed)
    del headers[header_of(field)]
    with pytest.raises(RequestRefused, match="signature"):
        read_stamp(headers)


@pytest.mark.parametrize("signature", ["", "no base64", "AAAA", "\u00e4"])
def test_a_signature_that_is_none_is_refused(signature: str) -> None:
    headers = sign(KEY, "POST", PATH, b"", _stamp()) | {SIGNATURE_HEADER: signature}
    with pytest.raises(RequestRefused, match="signature"):
        verify(KEY.public_key(), "POST", PATH, b"", headers)


def test_another_key_is_refused() -> None:
    headers = sign(KEY, "POST", PATH, b"", _stamp())
    with pytest.raises(RequestRefused) as refusal:
        verify(ec.generate_private_key(ec.SECP256R1()).public_key(), "POST", PATH, b"", headers)
    assert refusal.value.reason in REFUSALS


def test_versions_work_together_when_their_first_two_numbers_are_equal() -> None:
    assert works_with("0.1.0", "0.1.7")
    assert not works_with("0.1.0", "0.2.0")
    assert not works_with("1.1.0", "0.1.0")
