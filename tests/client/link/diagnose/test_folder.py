"""What lies in the site's folder."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from diagnosed import certify_anew, expect

from fedmed_client.site.home import SiteFolder
from fedmed_common import errors, identity


def test_no_certificate(offline: Any) -> None:
    expect(offline.join(certify_it=False), errors.ProvisionError, "site.pem", "cannot connect yet")


def test_no_home(tmp_path: Path) -> None:
    expect(SiteFolder(tmp_path), errors.ConfigError, "not a site's home yet")


def test_own_certificate_expired(offline: Any, home: SiteFolder) -> None:
    certify_anew(offline, home, now=datetime.now(UTC) - timedelta(days=100))
    expect(home, errors.OwnExpired, "this site's certificate expired on")


def test_own_certificate_not_valid_yet(offline: Any, home: SiteFolder) -> None:
    certify_anew(offline, home, now=datetime.now(UTC) + timedelta(days=2))
    expect(home, errors.OwnExpired, "is not valid before", "this machine's clock says")


def test_a_certificate_for_another_key(offline: Any, home: SiteFolder) -> None:
    home.key_file.unlink()
    identity.save_key(home.key_file, identity.new_key())
    expect(home, errors.ProvisionError, "is for another key")


def test_a_certificate_of_another_site(offline: Any, home: SiteFolder) -> None:
    other = offline.join()
    for file in ("key_file", "certificate_file"):
        shutil.copy(getattr(other, file), getattr(home, file))
    expect(home, errors.ProvisionError, f"is for the site '{other.path.name}'")


def test_another_authority_in_the_folder(coordinator: Any, home: SiteFolder) -> None:
    shutil.copy(coordinator.home.authority, home.authority_file)
    expect(home, errors.ProvisionError, "is not the authority whose fingerprint")


def test_another_name_in_the_sites_file(home: SiteFolder) -> None:
    home.site_file.write_text(home.site_file.read_text().replace(home.path.name, "somebody"))
    expect(home, errors.ConfigError, "is 'somebody'")


def test_an_authority_of_a_proxy_that_cannot_be_read(home: SiteFolder) -> None:
    (home.path / "proxy.pem").write_text("nothing")
    with home.site_file.open("a") as file:
        file.write('\n[network]\nca = "proxy.pem"\n')
    expect(home, errors.ConfigError, "network.ca", "it holds no certificate")
