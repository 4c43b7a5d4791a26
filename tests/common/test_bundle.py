"""A bundle is an experiment and a signature; whatever else it could be is refused, each with its reason."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.cli.install import install_from_fab
from flwr.common.config import flatten_dict, fuse_dicts, get_fab_config
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmed_common import bundle
from fedmed_common.config import Experiment
from fedmed_common.errors import BundleRefused

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
EXPERIMENT = Experiment.model_validate(
    {
        "name": "discs",
        "rounds": 3,
        "task": {"classes": ["disc"], "dimensions": 2},
        "data": {"patch": [16, 16], "spacing_mm": [0.5, 1, 1e-3]},
        "model": {"channels": [4, 8]},
        "train": {"learning_rate": 1e-5},
        "tracking": {"uri": "http://user:secret@tracking"},
        "simulation": {"federation": "/home/somebody/hospitals"},
    }
)
BUNDLE = bundle.build(EXPERIMENT, KEY)
Files = dict[str, bytes]


def _files(content: bytes = BUNDLE) -> Files:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zip(files: Files | list[tuple[str, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items() if isinstance(files, dict) else files:
            archive.writestr(name, content)
    return buffer.getvalue()


def _resigned(files: Files, key: Ed25519PrivateKey = KEY) -> Files:
    """The files with a signature that holds: what the consortium's own key can be made to sign."""
    files = dict(files)
    signed = key.sign(bundle._signed(files["pyproject.toml"], files["experiment.toml"]))
    signer = bundle._text(key.public_key().public_bytes_raw())
    files["signature.json"] = json.dumps({"signer": signer, "signature": bundle._text(signed)}).encode()
    files[".info/CONTENT"] = bundle._content({n: c for n, c in files.items() if n != ".info/CONTENT"})
    return files


def _with(name: str, change: Callable[[bytes], bytes]) -> Files:
    files = _files()
    return {**files, name: change(files[name])}


def test_a_bundle_comes_back_without_what_is_the_coordinators() -> None:
    approved = bundle.check(BUNDLE, KEY.public_key())
    assert approved.experiment.order_text() == EXPERIMENT.order_text()
    assert approved.experiment == EXPERIMENT.model_copy(
        update={"simulation": None, "tracking": approved.experiment.tracking}
    )
    assert approved.hash == bundle.approval_hash(EXPERIMENT, bundle.installed_version())
    assert approved.code_version == bundle.installed_version()
    assert not any(word in content for word in (b"somebody", b"secret") for content in _files().values())


def test_the_same_experiment_is_the_same_bundle() -> None:
    assert bundle.build(EXPERIMENT, KEY) == BUNDLE


def test_another_experiment_or_version_has_another_hash() -> None:
    other = EXPERIMENT.model_copy(update={"rounds": 4})
    hashes = {bundle.approval_hash(e, v) for e in (EXPERIMENT, other) for v in ("0.1.0", "0.1.1")}
    assert len(hashes) == 4


def test_flower_takes_the_bundle_and_the_runs_id(tmp_path: Path) -> None:
    settings = flatten_dict(get_fab_config(BUNDLE)["tool"]["flwr"]["app"]["config"])
    assert fuse_dicts(settings, {bundle.RUN_KEY: "run-1"}) == {bundle.RUN_KEY: "run-1"}
    installed = install_from_fab(BUNDLE, install_dir=tmp_path, skip_prompt=True)
    assert sorted(file.name for file in installed.rglob("*")) == [
        "experiment.toml",
        "pyproject.toml",
        "signature.json",
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (BUNDLE + bytes(bundle.LARGEST_BYTES), "too large"),
        (_zip(_resigned(_with("experiment.toml", lambda t: t + b"#" * 50_000_000))), "too large"),
        (_zip({**_files(), "fedmed_client/app.py": b"print('mine')"}), "code in the bundle"),
        (_zip({**_files(), "x/__init__.PYC": b""}), "code in the bundle"),
        (_zip({**_files(), "notes.md": b""}), "tampered bundle"),
        (_zip({**_files(), "../experiment.toml": b""}), "tampered bundle"),
        (_zip({n: c for n, c in _files().items() if n != "signature.json"}), "unsigned"),
        (_zip({**_files(), "signature.json": b"{}"}), "unsigned"),
        (_zip({**_files(), "signature.json": b"[" * 100_000}), "unsigned"),
        (_zip({**_files(), "signature.json": b'{"signer": 1, "signature": 2}'}), "unsigned"),
        (_zip(_resigned(_files(), Ed25519PrivateKey.generate())), "another signer"),
        (
            _zip(_with("experiment.toml", lambda t: t.replace(b"rounds = 3", b"rounds = 9"))),
            "tampered bundle",
        ),
        (_zip(_with("pyproject.toml", lambda t: t + b"\n")), "tampered bundle"),
        (_zip(_with(".info/CONTENT", lambda t: t + b"\nx.py,00,0")), "tampered bundle"),
        (_zip(_resigned(_with("pyproject.toml", lambda t: t + b"# more\n"))), "tampered bundle"),
        (
            _zip(_resigned(_with("pyproject.toml", lambda t: t.replace(b"fedmed_client.app", b"os.path")))),
            "another component",
        ),
        (
            _zip(_resigned(_with("experiment.toml", lambda t: b'colour = "red"\n' + t))),
            "another version",
        ),
        (
            _zip(_resigned({**_files(), "pyproject.toml": bundle._project("99.0.0")})),
            "another version",
        ),
        (_zip(_files(), zipfile.ZIP_LZMA), "tampered bundle"),
        (b"", "tampered bundle"),
        (BUNDLE[:-30], "tampered bundle"),
    ],
)
def test_anything_else_is_refused(content: bytes, reason: str) -> None:
    assert reason in bundle.REASONS
    with pytest.raises(BundleRefused) as refused:
        bundle.check(content, KEY.public_key())
    assert refused.value.reason == reason


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_is_refused() -> None:
    evil = _with("experiment.toml", lambda text: text.replace(b"rounds = 3", b"rounds = 9"))
    for first, second in ((evil, _files()), (_files(), evil)):
        entries = [*first.items(), ("experiment.toml", second["experiment.toml"])]
        with pytest.raises(BundleRefused, match="tampered bundle"):
            bundle.check(_zip(entries), KEY.public_key())


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(BUNDLE) - 1), st.integers(1, 255))
def test_a_changed_byte_changes_nothing_or_is_refused(position: int, difference: int) -> None:
    content = bytearray(BUNDLE)
    content[position] ^= difference
    try:
        approved = bundle.check(bytes(content), KEY.public_key())
    except BundleRefused as refused:
        assert refused.reason in bundle.REASONS
    else:
        assert approved.experiment.order_text() == EXPERIMENT.order_text()
