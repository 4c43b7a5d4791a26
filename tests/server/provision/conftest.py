"""A consortium of two sites, as its coordinator makes it, and a site's own half of joining."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fedmed_common import identity, kits
from fedmed_common.enrolment import request_with_kit
from fedmed_server.provision.create import create
from fedmed_server.provision.folder import ConsortiumFolder

FILE = """
name = "Trial"
[coordinator]
address = "127.0.0.1:9443"
names = ["fedmed.example.org", "10.0.0.5"]
contact = "Ada <ada@example.org>"
[[sites]]
name = "north"
contact = "it@north.example"
[[sites]]
name = "south"
"""


class Coordinator(SimpleNamespace):
    """A consortium's file and folder."""

    file: Path
    folder: ConsortiumFolder

    def create(self, *, change: bool = False) -> dict[str, str]:
        """What ``fedmed provision`` did, by path within the folder."""
        made = create(self.file, self.folder, change=change)
        return {str(one.path.relative_to(self.folder.path)): one.state for one in made}

    def rewrite(self, old: str, new: str) -> None:
        """Change the consortium's file."""
        assert old in self.file.read_text()
        self.file.write_text(self.file.read_text().replace(old, new, 1))

    def request(self, site: str, key: ec.EllipticCurvePrivateKey | None = None) -> Path:
        """What a site sends that opened its kit."""
        kit = kits.open_kit(self.folder.kit(site))
        request = request_with_kit(kit.connection, key or identity.new_key(), kit.files[kits.SECRET])
        file = self.file.with_name(f"{site}.request.json")
        file.write_bytes(request.text())
        return file

    def contents(self) -> dict[str, bytes]:
        """Every file of the folder."""
        files = (path for path in self.folder.path.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder.path)): path.read_bytes() for path in files}


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    file = tmp_path / "consortium.toml"
    file.write_text(FILE)
    made = Coordinator(file=file, folder=ConsortiumFolder(tmp_path / "consortium"))
    made.create()
    return made
