"""compose.yaml and what it mounts, as far as they can be tried without a container engine."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from gateway.contract import CONTRACT, read_contract
from meshkit import secrets
from meshkit.ca.folder import make_authority
from meshkit.embedded import binaries
from meshkit.nats_server import NatsUser
from meshkit.testing import identities
from meshkit.testing.mesh import eventually
from twinmesh_cli.ca import MEMBERS
from twinmesh_cli.database import role_password
from twinmesh_cli.owners import OWNERS

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?P<rule>:[-?])?(?P<rest>[^}]*)\}")
SECRETS = {"TWINMESH_MESH_SECRET", "POSTGRES_PASSWORD", "TWINMESH_ADMIN_PASSWORD"}
ROOT_SECRET = "A" * 43


def example() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def interpolated(text: str, more: Mapping[str, str] = MappingProxyType({})) -> str:
    """The text as compose reads it with the example's settings, and others."""
    settings = {**example(), **more}

    def value(match: re.Match[str]) -> str:
        set_to = settings.get(match["name"], "")
        return set_to or (match["rest"] if match["rule"] == ":-" else "")

    return VARIABLE.sub(value, text)


def test_follows_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, ROOT / "compose.yaml"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_variable_is_in_the_example_and_the_other_way_round() -> None:
    used = {match["name"] for match in VARIABLE.finditer((ROOT / "compose.yaml").read_text())}
    assert used == set(example())


def test_secrets_have_no_default() -> None:
    for match in VARIABLE.finditer((ROOT / "compose.yaml").read_text()):
        if match["name"] in SECRETS:
            assert match["rule"] == ":?", match[0]
        else:
            assert match["rule"] == ":-", match[0]
            assert match["rest"] == example()[match["name"]], match[0]
    assert {name for name, value in example().items() if not value} >= SECRETS


def test_what_is_referred_to_is_there() -> None:
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[needed], f"{name} waits for the health of {needed}"
            if how["condition"] == "service_completed_successfully":
                assert SERVICES[needed].get("restart") != "unless-stopped", f"{needed} never completes"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).is_file() if source.startswith("./") else source in COMPOSE["volumes"]
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    for line in dockerfile.splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            assert all((ROOT / source).exists() for source in line.split()[1:-1]), line


def test_ports_are_published_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"gateway", "nats"}
    for ports in published.values():
        assert all(interpolated(port).startswith("127.0.0.1:") for port in ports)


def test_services_can_be_scaled() -> None:
    """Two containers can share neither a name nor a published port."""
    for name in ("auth_svc", "asset_svc", "ingest_svc", "twin_svc", "maintenance"):
        assert not {"container_name", "hostname", "ports"} & SERVICES[name].keys(), name


def test_services_are_told_roles_that_migrations_make() -> None:
    made = {role.name for owner in OWNERS for role in owner.roles if role.login}
    told = set()
    for service in SERVICES.values():
        for argument in service.get("command", []):
            variable, _, role = argument.partition("=")
            if variable.endswith("_DATABASE_URL"):
                assert role in made
                told.add(role)
    assert told == made


def test_a_service_is_run_with_its_roles_url(tmp_path: Path) -> None:
    (tmp_path / "shows.py").write_text("import os; print(os.environ['TWINMESH_SERVICE_DATABASE_URL'])")
    shown = subprocess.run(
        [
            sys.executable,
            ROOT / "deploy" / "run_service.py",
            "shows",
            "TWINMESH_SERVICE_DATABASE_URL=twinmesh_auth",
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(tmp_path),
            "TWINMESH_MESH_SECRET": ROOT_SECRET,
            "TWINMESH_DATABASE": SERVICES["auth_svc"]["environment"]["TWINMESH_DATABASE"],
        },
        capture_output=True,
        text=True,
        check=True,
    )
    password = role_password(secrets.decode_root(ROOT_SECRET), "twinmesh_auth")
    assert shown.stdout.strip() == f"postgresql://twinmesh_auth:{password}@postgres:5432/twinmesh"


def test_everybody_gets_the_identity_that_is_issued_for_them_and_no_other() -> None:
    issuer = SERVICES["identities"]
    folder = issuer["command"][-1]
    issued = {}
    for volume in issuer["volumes"]:
        source, _, target = volume.partition(":")
        if target.startswith(f"{folder}/"):
            issued[source] = target.removeprefix(f"{folder}/")
    assert set(issued.values()) == set(MEMBERS)
    for name, service in SERVICES.items():
        mounted = {volume.split(":")[0]: volume.split(":")[1] for volume in service.get("volumes", [])}
        own = {issued[source] for source in mounted if source in issued}
        if name != "identities":
            assert own == ({name.removesuffix("-config")} & set(MEMBERS)), name
            assert all(mounted[source] == "/identity" for source in mounted if source in issued), name


def writable_volumes(name: str) -> dict[str, str]:
    """The paths of the volumes that a service mounts to write to, by volume."""
    mounts = [volume.split(":") for volume in SERVICES[name].get("volumes", [])]
    return {source: path for source, path, *options in mounts if options != ["ro"]}


def test_who_writes_to_a_volume_owns_it() -> None:
    """A volume takes the owner of what is there in the image with which it is mounted first."""
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
    owned = re.search(r"install --directory --owner=twinmesh --group=twinmesh (?P<paths>[^&\n]*)", dockerfile)
    assert owned is not None
    folders = owned["paths"].split()
    ours = {name for name, service in SERVICES.items() if "build" in service}
    for name in ours:
        for volume, path in writable_volumes(name).items():
            assert path in folders, f"{name} cannot write to {volume}"
    # Other images have no such folders: one of ours has mounted their volumes by the time they start.
    user = re.search(r"^USER (\S+)$", dockerfile, re.MULTILINE)
    assert user is not None
    for name in ("nats", "gateway"):
        assert SERVICES[name]["user"] == user[1]
        prepared = [writable_volumes(step) for step in SERVICES[name]["depends_on"] if step in ours]
        for volume in writable_volumes(name):
            assert any(volume in volumes for volumes in prepared), f"{name} cannot write to {volume}"
    # Its log, which it lets its own user read alone.
    assert {"nats-log", "nats-data"} <= writable_volumes("nats").keys()


@pytest.fixture
def trust(short_home: Path) -> Path:
    """The folder that the service `trust` keeps, as it is when its health check lets Envoy start."""
    step = SERVICES["trust"]
    assert step["command"][1:] == ["-m", "twinmesh_cli.trust", "/trust"]
    environment = {name: interpolated(str(value)) for name, value in step["environment"].items()}
    ca, folder = short_home / "ca", short_home / "trust"
    make_authority(ca, "twinmesh")
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "twinmesh_cli.trust", folder],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment, "TWINMESH_CA_DIR": str(ca)},
    ) as running:
        try:
            (*command, path) = step["healthcheck"]["test"]
            assert command == ["CMD", "test", "-f"]
            eventually((folder / Path(path).name).is_file, "it is healthy")
        finally:
            running.terminate()
    return folder


def test_envoy_and_auth_svc_find_what_the_trust_service_made(trust: Path) -> None:
    made = {path.name for path in trust.iterdir()}
    assert made == {
        "ca.pem",
        "server.key.pem",
        "server.pem",
        "server.json",
        "trust.json",
    }
    # auth_svc adds the CRL beside them, and signs with the same CA.
    told = SERVICES["auth_svc"]["environment"]
    assert told["TWINMESH_CRL_FILE"] == "/trust/crl.pem"
    assert told["TWINMESH_CA_DIR"] == SERVICES["trust"]["environment"]["TWINMESH_CA_DIR"]
    # Keys are their owner's alone: all three run as one user.
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert f"USER {SERVICES['gateway']['user']}" in dockerfile


@pytest.fixture
def rendered(short_home: Path, trust: Path) -> Path:
    """The folder that the step `gateway-config` fills."""
    step = SERVICES["gateway-config"]
    environment = {name: interpolated(str(value)) for name, value in step["environment"].items()}
    environment["TWINMESH_TRUST_DIR"] = str(trust)
    assert step["command"][1:] == ["-m", "gateway.render", "/gateway"]
    environment["TWINMESH_IDENTITY_DIR"] = str(identities.identity_dir("gateway"))
    subprocess.run(
        [sys.executable, "-m", "gateway.render", short_home],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        check=True,
    )
    return short_home


def test_envoy_accepts_the_gateways_configuration(rendered: Path) -> None:
    envoy, config = str(binaries.envoy(None)), str(rendered / "envoy.json")
    command = [envoy, "--mode", "validate", "--config-path", config]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_gateway_reaches_services_by_name(rendered: Path) -> None:
    config = json.loads((rendered / "envoy.json").read_text())
    clusters = {cluster["name"]: cluster for cluster in config["static_resources"]["clusters"]}
    for name in ("auth_svc", "asset_svc", "ingest_svc", "twin_svc", "otlp"):
        (locality,) = clusters[name]["load_assignment"]["endpoints"]
        (host,) = locality["lb_endpoints"]
        address = host["endpoint"]["address"]["socket_address"]
        assert clusters[name]["type"] == "STRICT_DNS"
        assert address["address"] in SERVICES
    assert read_contract(rendered / "contract.binpb") == read_contract(CONTRACT)
    listeners = {each["name"]: each for each in config["static_resources"]["listeners"]}
    published = [int(port.rpartition(":")[2]) for port in SERVICES["gateway"]["ports"]]
    assert published == [
        listeners[name]["address"]["socket_address"]["port_value"] for name in ("edge", "devices")
    ]
    admin = config["admin"]["address"]["socket_address"]
    assert admin["address"] == "127.0.0.1"


def test_nats_accepts_its_configuration(tmp_path: Path) -> None:
    """As the step `nats-config` writes it."""
    step = SERVICES["nats-config"]
    assert step["command"][1:] == ["-m", "meshkit.nats_server", "/nats"]
    environment = {name: interpolated(str(value)) for name, value in step["environment"].items()}
    subprocess.run(
        [sys.executable, "-m", "meshkit.nats_server", tmp_path],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment, "TWINMESH_MESH_SECRET": ROOT_SECRET},
        check=True,
    )
    done = subprocess.run(
        [binaries.nats_server(None), "-t", "-c", tmp_path / "nats.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_mqtt_is_not_published_beyond_loopback_without_tls(tmp_path: Path) -> None:
    step = SERVICES["nats-config"]["environment"]
    outcomes = {}
    for name, more in {
        "refused": {"TWINMESH_BIND": "0.0.0.0"},
        "wanted": {"TWINMESH_BIND": "0.0.0.0", "TWINMESH_MQTT_PLAINTEXT": "true"},
        "published here": {},
        "TLS": {
            "TWINMESH_BIND": "0.0.0.0",
            "TWINMESH_MQTT_TLS_CERTIFICATE": "/tls/c",
            "TWINMESH_MQTT_TLS_KEY": "/tls/k",
        },
    }.items():
        environment = {key: interpolated(str(value), more) for key, value in step.items()}
        done = subprocess.run(
            [sys.executable, "-m", "meshkit.nats_server", tmp_path],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], **environment, "TWINMESH_MESH_SECRET": ROOT_SECRET},
            capture_output=True,
            text=True,
            check=False,
        )
        outcomes[name] = (done.returncode, "TWINMESH_MQTT_TLS_CERTIFICATE" in done.stderr)
    assert outcomes == {
        "refused": (2, True),
        "wanted": (0, False),
        "published here": (0, False),
        "TLS": (0, False),
    }


def test_services_are_told_users_that_nats_knows() -> None:
    told = {
        name
        for service in SERVICES.values()
        for argument in service.get("command", [])
        for variable, _, name in [argument.partition("=")]
        if variable.endswith("_NATS_URL")
    }
    assert told == set(NatsUser)


def test_the_collectors_pipelines_name_what_is_defined() -> None:
    collector = yaml.safe_load((ROOT / "deploy" / "otel-collector.yaml").read_text())
    # What the services export.
    assert {"traces", "metrics"} <= collector["service"]["pipelines"].keys()
    for pipeline in collector["service"]["pipelines"].values():
        for kind in ("receivers", "processors", "exporters"):
            assert set(pipeline[kind]) <= set(collector[kind])
    grpc_port = collector["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].rpartition(":")[2]
    endpoint = SERVICES["gateway-config"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"]
    assert endpoint == f"http://otel-collector:{grpc_port}"


@pytest.mark.skipif(shutil.which("bash") is None, reason="the gateway's image has bash, this machine has not")
def test_the_gateways_health_check_is_a_valid_script() -> None:
    script = SERVICES["gateway"]["healthcheck"]["test"][3]
    assert subprocess.run(["bash", "-n", "-c", script], check=False).returncode == 0
