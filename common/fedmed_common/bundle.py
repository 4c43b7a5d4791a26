"""What a deployed run hands to its sites: one experiment and a signature, and no code.

A bundle is a Flower App Bundle, a zip, of exactly four files. ``pyproject.toml`` names the components, which are part of the
installed fedmed; ``experiment.toml`` is the experiment without the coordinator's own tables; ``signature.json`` is the
consortium's Ed25519 signature over both; ``.info/CONTENT`` is the list of digests that Flower reads.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import tomllib
import zipfile
import zlib
from dataclasses import dataclass
from importlib.metadata import version

import tomli_w
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ValidationError

from fedmed_common.config import Experiment
from fedmed_common.errors import BundleRefused

SERVER_APP = "fedmed_server.deployment.serverapp:app"
CLIENT_APP = "fedmed_client.app:app"
RUN_KEY = "run"
"""The one setting of a Flower run: fedmed's own id of the run."""

REASONS = (
    "too large",
    "code in the bundle",
    "unsigned",
    "another signer",
    "tampered bundle",
    "another component",
    "another version",
)
"""Why a bundle is refused; all that :class:`BundleRefused` says."""

LARGEST_BYTES = 1_000_000
"""Of a bundle, and of each file in it once inflated."""

_PROJECT, _EXPERIMENT, _SIGNATURE, _CONTENT = (
    "pyproject.toml",
    "experiment.toml",
    "signature.json",
    ".info/CONTENT",
)
_FILES = (_PROJECT, _EXPERIMENT, _SIGNATURE, _CONTENT)
_CODE = re.compile(r"\.(?:py[a-z0-9]?|pth|so|dll|dylib|egg|whl|sh)$", re.IGNORECASE)
_DATE = (2024, 10, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Approved:
    """What a bundle asks for, once it is known to be the consortium's. ``hash`` is what a site's IT approves."""

    hash: str
    experiment: Experiment
    code_version: str


def installed_version() -> str:
    """The version of fedmed that runs here."""
    return version("fedmed")


def approval_hash(experiment: Experiment, code_version: str) -> str:
    """Names what a site carries out: the same experiment under the same version has the same hash in every run."""
    return hashlib.sha256(f"{experiment.order_text()}\n{code_version}".encode()).hexdigest()


def build(experiment: Experiment, signing_key: Ed25519PrivateKey) -> bytes:
    """The signed bundle of an experiment, for the version that is installed here."""
    document = experiment.model_dump(mode="json", exclude_none=True, exclude={"simulation", "tracking"})
    files = {
        _PROJECT: _project(installed_version()),
        _EXPERIMENT: tomli_w.dumps(document).encode(),
    }
    files[_SIGNATURE] = json.dumps(
        {
            "signer": _text(signing_key.public_key().public_bytes_raw()),
            "signature": _text(signing_key.sign(_signed(files[_PROJECT], files[_EXPERIMENT]))),
        },
        indent=1,
    ).encode()
    files[_CONTENT] = _content(files)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, _DATE), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def check(content: bytes, signer: Ed25519PublicKey) -> Approved:
    """Read a bundle as a site does: nothing in it is used before the signature holds, and nothing in it is ever run.

    Raises:
        BundleRefused: with one of ``REASONS``.
    """
    files = _read(content)
    _check_signature(files, signer)
    code_version = _check_project(files[_PROJECT])
    if files[_CONTENT] != _content({name: files[name] for name in _FILES if name != _CONTENT}):
        raise BundleRefused("tampered bundle")
    try:
        experiment = Experiment.model_validate(tomllib.loads(files[_EXPERIMENT].decode()))
    except (ValidationError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise BundleRefused("another version") from None
    return Approved(
        hash=approval_hash(experiment, code_version), experiment=experiment, code_version=code_version
    )


def _read(content: bytes) -> dict[str, bytes]:
    """The files of the zip, each inflated to a bounded size; nothing is written to a disk."""
    if len(content) > LARGEST_BYTES:
        raise BundleRefused("too large")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            _check_names([entry.filename for entry in entries])
            return {entry.filename: _inflate(archive, entry) for entry in entries}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError):
        raise BundleRefused("tampered bundle") from None


def _check_names(names: list[str]) -> None:
    if any(_CODE.search(name) for name in names):
        raise BundleRefused("code in the bundle")
    if sorted(names) == sorted(set(_FILES) - {_SIGNATURE}):
        raise BundleRefused("unsigned")
    if sorted(names) != sorted(_FILES):
        raise BundleRefused("tampered bundle")


def _inflate(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise BundleRefused("tampered bundle")
    with archive.open(entry) as stream:
        content = stream.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        raise BundleRefused("too large")
    return content


def _check_signature(files: dict[str, bytes], signer: Ed25519PublicKey) -> None:
    try:
        document = json.loads(files[_SIGNATURE])
        named, signature = (base64.b64decode(document[key], validate=True) for key in ("signer", "signature"))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BundleRefused("unsigned") from None
    if named != signer.public_bytes_raw():
        raise BundleRefused("another signer")
    try:
        signer.verify(signature, _signed(files[_PROJECT], files[_EXPERIMENT]))
    except InvalidSignature:
        raise BundleRefused("tampered bundle") from None


def _check_project(content: bytes) -> str:
    """The version that the bundle is for; the rest of the file has one form only."""
    try:
        document = tomllib.loads(content.decode())
        code_version = document["project"]["version"]
        components = document["tool"]["flwr"]["app"]["components"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise BundleRefused("tampered bundle") from None
    if components != {"serverapp": SERVER_APP, "clientapp": CLIENT_APP}:
        raise BundleRefused("another component")
    if not isinstance(code_version, str) or content != _project(code_version):
        raise BundleRefused("tampered bundle")
    if code_version.split(".")[:2] != installed_version().split(".")[:2]:
        raise BundleRefused("another version")
    return code_version


def _project(code_version: str) -> bytes:
    app = {
        "publisher": "fedmed",
        "components": {"serverapp": SERVER_APP, "clientapp": CLIENT_APP},
        "config": {RUN_KEY: ""},
    }
    return tomli_w.dumps(
        {
            "project": {
                "name": "fedmed-run",
                "version": code_version,
                "description": "An experiment for the installed fedmed",
            },
            "tool": {"flwr": {"app": app}},
        }
    ).encode()


def _signed(project: bytes, experiment: bytes) -> bytes:
    digests = (hashlib.sha256(part).hexdigest() for part in (project, experiment))
    return "\n".join(("fedmed-bundle-1", *digests)).encode()


def _content(files: dict[str, bytes]) -> bytes:
    """Flower's own list: path, SHA-256, size in bits."""
    return "\n".join(
        f"{name},{hashlib.sha256(content).hexdigest()},{len(content) * 8}" for name, content in files.items()
    ).encode()


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
