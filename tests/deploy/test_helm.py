"""The Helm chart: rendered by helm, checked against Kubernetes' own schemas and its restricted pod security standard."""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedmed_server.deployment.home import ServerHome, ServerSettings
from fedmed_server.deployment.serve import check
from fedmed_server.provision.registry import load_registry
from fedmed_simulations.rehearsal.machines import fedmed, free_ports

from .conftest import DEPLOY, output, tool

CHART = DEPLOY / "helm" / "fedmed"
SERVER = ("server.enabled=true", "server.consortium=trial", "server.identitySecret=identity")
SITE = (
    "site.enabled=true",
    "site.data.existingClaim=images",
    "site.networkPolicy.coordinatorCIDRs={192.0.2.10/32}",
)
VERSIONS = ("1.30", "1.33", "1.37")
KINDS = {
    "server": {
        "ServiceAccount",
        "ConfigMap",
        "Service",
        "StatefulSet",
        "NetworkPolicy",
        "PodDisruptionBudget",
    },
    "site": {"ServiceAccount", "Service", "StatefulSet", "NetworkPolicy"},
}
PERMITTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip


def render(*values: str) -> list[dict[str, Any]]:
    options = [part for value in values for part in ("--set", value)]
    text = output(tool("helm"), "template", "trial", CHART, "--namespace", "fedmed", *options)
    return [document for document in yaml.safe_load_all(text) if document]


def refused(*values: str) -> str:
    options = [part for value in values for part in ("--set", value)]
    command = [tool("helm"), "template", "trial", str(CHART), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    return done.stderr


def one(documents: list[dict[str, Any]], kind: str, component: str = "") -> dict[str, Any]:
    found = [document for document in documents if document["kind"] == kind]
    found = [document for document in found if document["metadata"]["name"].endswith(component)]
    assert len(found) == 1
    return found[0]


def pod(*values: str) -> dict[str, Any]:
    return one(render(*values), "StatefulSet")["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("server.maintenance=true", "site.maintenance=true", "site.gpu.count=1", "site.podDisruptionBudget.enabled=true"),
        ("server.storage.existingClaim=a", "site.storage.existingClaim=b", "site.supplementalGroups={4000}"),
        ("server.environment.HTTPS_PROXY=http://proxy:3128", "server.environmentFromSecret=mlflow", "imagePullSecrets[0].name=x"),
        ("server.tolerations[0].key=a", "server.tolerations[0].operator=Exists", "site.nodeSelector.gpu=yes"),
    ],
)  # fmt: skip
def test_what_is_rendered_is_what_kubernetes_knows(version: str, more: tuple[str, ...]) -> None:
    validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed"
    ).validate
    documents = render(*SERVER, *SITE, *more)
    assert {document["kind"] for document in documents} >= KINDS["server"]
    for document in documents:
        validate(document, version, strict=True)


def test_a_role_renders_its_own_things_alone() -> None:
    for role, values in (("server", SERVER), ("site", SITE)):
        documents = render(*values)
        assert {document["kind"] for document in documents} == KINDS[role]
        assert {document["metadata"]["name"] for document in documents} == {f"trial-{role}"}


def test_helm_finds_nothing_to_complain_about() -> None:
    options = [part for value in (*SERVER, *SITE) for part in ("--set", value)]
    output(tool("helm"), "lint", "--strict", CHART, *options)


@pytest.mark.parametrize(
    "values", [SERVER, SITE, (*SITE, "site.gpu.count=1"), (*SITE, "site.maintenance=true")]
)
def test_pods_meet_the_restricted_standard(values: tuple[str, ...]) -> None:
    spec = pod(*values)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    volumes = [set(volume) - {"name"} for volume in spec["volumes"]]
    assert all(kinds <= PERMITTED_VOLUMES for kinds in volumes)
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["runAsNonRoot"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
        assert not [port for port in container.get("ports", []) if "hostPort" in port]


def test_an_account_has_no_token() -> None:
    for values in (SERVER, SITE):
        assert one(render(*values), "ServiceAccount")["automountServiceAccountToken"] is False


def test_a_site_takes_no_connection_and_reaches_the_coordinator_and_dns_alone() -> None:
    policy = one(render(*SITE), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == []
    dns, coordinator = policy["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}
    assert all("podSelector" in peer and "namespaceSelector" in peer for peer in dns["to"])
    assert coordinator == {
        "to": [{"ipBlock": {"cidr": "192.0.2.10/32"}}],
        "ports": [{"port": 8443, "protocol": "TCP"}],
    }
    assert not [container for container in pod(*SITE)["containers"] if "ports" in container]


def test_a_server_takes_connections_on_one_port_and_makes_none() -> None:
    policy = one(render(*SERVER), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert [rule["ports"] for rule in policy["ingress"]] == [[{"port": 8443, "protocol": "TCP"}]]
    assert policy["egress"] == []
    service = one(render(*SERVER), "Service")["spec"]
    assert [port["targetPort"] for port in service["ports"]] == ["fleet"]


def test_the_servers_settings_are_settings() -> None:
    values = (
        *SERVER[:1],
        'server.consortium=the "rare" trial',
        SERVER[2],
        "server.behindProxy=true",
        "server.bodyMb=16",
        "server.trackingUri=https://mlflow.example.org",
    )
    text = one(render(*values), "ConfigMap")["data"]["server.toml"]
    settings = ServerSettings(**tomllib.loads(text))
    assert (settings.name, settings.public.behind_proxy, settings.limits.body_mb) == (
        'the "rare" trial',
        True,
        16,
    )
    assert settings.tracking.uri == "https://mlflow.example.org"
    assert (settings.public.host, settings.health.host) == ("0.0.0.0", "0.0.0.0")  # noqa: S104


def test_the_defaults_are_those_of_the_server() -> None:
    text = one(render(*SERVER), "ConfigMap")["data"]["server.toml"]
    settings, plain = ServerSettings(**tomllib.loads(text)), ServerSettings(name="trial")
    assert settings.limits == plain.limits
    assert settings.public == plain.public
    assert (settings.private.port, settings.health.port) == (plain.private.port, plain.health.port)


def test_probes_are_grpc_at_the_server_and_a_command_at_the_site() -> None:
    server, site = pod(*SERVER)["containers"][0], pod(*SITE)["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["grpc"] == {"port": 8445}
    for probe in ("startupProbe", "livenessProbe"):
        assert site[probe]["exec"]["command"] == ["fedmed", "site", "health"]


def test_a_gpu_is_asked_for_only_where_one_is_wanted() -> None:
    limits = [
        pod(*SITE, f"site.gpu.count={count}")["containers"][0]["resources"]["limits"] for count in (0, 1)
    ]
    assert [limit.get("nvidia.com/gpu") for limit in limits] == [None, 1]
    assert limits[0]["memory"] == limits[1]["memory"]


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ((), "nothing is enabled"),
        (("server.enabled=true",), "consortium"),
        (("site.enabled=true",), "existingClaim"),
        (SITE[:2], "coordinatorCIDRs"),
        ((*SERVER, "server.nmae=x"), "nmae"),
        ((*SERVER, "server.ports.public=443"), "public"),
        ((*SERVER, "server.image.digest=latest"), "digest"),
        ((*SITE, "site.gpu.count=8"), "count"),
        ((*SITE, "site.environment.lower=x"), "lower"),
    ],
)
def test_wrong_values_are_refused_by_name(values: tuple[str, ...], word: str) -> None:
    assert word in refused(*values)


def test_the_schema_is_a_schema_and_knows_every_value() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    __import__("jsonschema").Draft7Validator.check_schema(schema)
    assert _unknown(schema, values) == []


def _unknown(schema: dict[str, Any], values: dict[str, Any], place: str = "") -> list[str]:
    found: list[str] = []
    for name, value in values.items():
        below = schema.get("properties", {}).get(name)
        if below is None:
            found.append(place + name)
        elif isinstance(value, dict) and "properties" in below:
            found += _unknown(below, value, f"{place}{name}.")
    return found


def test_every_value_is_documented() -> None:
    text = (CHART / "README.md").read_text()
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert [key for role in ("server", "site") for key in values[role] if f"`{key}" not in text] == []


def test_a_digest_goes_before_a_tag() -> None:
    digest = "sha256:" + "0" * 64
    images = [pod(*SITE, *more)["containers"][0]["image"] for more in ((), (f"site.image.digest={digest}",))]
    assert images == ["fedmed-site:0.1.0", f"fedmed-site@{digest}"]


def test_the_chart_has_the_version_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert chart["appVersion"] == project["project"]["version"]


def test_the_identity_in_a_secret_becomes_a_home_and_a_change_of_the_registry_reaches_it(
    tmp_path: Path,
) -> None:
    """Kubernetes replaces what is in a mounted secret by swapping one link; so does this test."""
    (tmp_path / "consortium.toml").write_text(
        'name = "trial"\n[coordinator]\naddress = "127.0.0.1:8443"\n[[sites]]\nname = "alpha"\n'
    )
    made, site, home = tmp_path / "made", tmp_path / "site", tmp_path / "home"
    fedmed("provision", str(tmp_path / "consortium.toml"), "--out", str(made))
    identity, settings = tmp_path / "identity", tmp_path / "settings"
    _mount(identity, made / "server", "1")
    settings.mkdir()
    ports = zip(("public", "private", "health"), free_ports(3), strict=True)
    rendered = render(*SERVER, *(f"server.ports.{name}={port}" for name, port in ports))
    (settings / "server.toml").write_text(one(rendered, "ConfigMap")["data"]["server.toml"])
    script = pod(*SERVER)["initContainers"][0]["command"][2]
    script = script.replace("/identity", str(identity)).replace("/settings", str(settings))
    for _ in range(2):
        output("env", f"FEDMED_HOME={home}", "sh", "-euc", script)
    check(ServerHome(home))
    assert load_registry(ServerHome(home).registry) == {}

    fedmed("site", "init", str(made / "kits" / "alpha.zip"), "--home", str(site))
    fedmed("provision", "sign", str(site / "request.json"), "--out", str(made))
    before = ServerHome(home).registry.stat()
    _mount(identity, made / "server", "2")
    assert set(load_registry(ServerHome(home).registry)) == {"alpha"}
    assert ServerHome(home).registry.stat().st_ino != before.st_ino


def _mount(secret: Path, server: Path, version: str) -> None:
    folder = secret / version
    folder.mkdir(parents=True)
    for name in ("tls/ca.pem", "tls/server.pem", "tls/server.key", "signing.key", "registry.json"):
        shutil.copy(server / name, folder)
        file = secret / Path(name).name
        if not file.is_symlink():
            file.symlink_to(Path("..data") / file.name)
    (secret / "..new").symlink_to(version)
    (secret / "..new").rename(secret / "..data")
