"""The gateway's main port over TLS: who gets in, what is told, and certificates that change while it runs."""

import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from meshkit.ca.folder import read_authority
from meshkit.testing import identities
from meshkit.testing.certificates import key_pem, new_key
from meshkit.testing.mesh import Mesh, eventually, start_mesh
from meshkit.testing.tls import certificate, shown

HOST = "mesh.example"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="twinmesh-edge-"))
    home.chmod(0o755)
    yield home
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def mesh(folder: Path) -> Iterator[Mesh]:
    chain, key = certificate(folder, "edge", host=HOST)
    started = start_mesh(
        folder,
        TWINMESH_GATEWAY_TLS_CERTIFICATE=str(chain),
        TWINMESH_GATEWAY_TLS_KEY=str(key),
        # Its key may be one that Envoy's user cannot read.
        TWINMESH_MQTT_CLIENT_CERTIFICATES="true",
        # Renamed over all of the machine's addresses it would be refused without TLS.
        TWINMESH_BIND="0.0.0.0",
        TWINMESH_SIMULATE="true",
    )
    yield started
    started.twinmesh("down")


def context(authority: Path, *, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(authority))
    if version is not None:
        made.minimum_version = made.maximum_version = version
        made.set_ciphers("DEFAULT:@SECLEVEL=0")
    return made


def get(mesh: Mesh, path: str, authority: Path) -> httpx.Response:
    with httpx.Client(verify=context(authority), timeout=30) as client:
        url = f"https://127.0.0.1:{mesh.port}{path}"
        return client.get(url, extensions={"sni_hostname": HOST})


def test_json_is_answered_over_tls_only_and_browsers_are_told_so(mesh: Mesh, folder: Path) -> None:
    for path, status in (("/v1/auth/me", 401), ("/healthz/ready", 200)):
        answer = get(mesh, path, folder / "edge.pem")
        assert answer.status_code == status, answer.text
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{mesh.port}/healthz/ready")
    stranger, _ = certificate(folder, "stranger", host=HOST)
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        get(mesh, "/healthz/ready", stranger)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1(_1)? is deprecated:DeprecationWarning")
@pytest.mark.parametrize("version", list(ssl.TLSVersion)[2:6], ids=lambda version: version.name)
def test_only_tls_from_1_2_on_comes_in(mesh: Mesh, folder: Path, version: ssl.TLSVersion) -> None:
    tls = context(folder / "edge.pem", version=version)
    with socket.create_connection(("127.0.0.1", mesh.port), timeout=30) as plain:
        if version >= ssl.TLSVersion.TLSv1_2:
            with tls.wrap_socket(plain, server_hostname=HOST) as secure:
                assert secure.version() == version.name.replace("_", ".")
        else:
            with pytest.raises(ssl.SSLError, match="protocol version"):
                tls.wrap_socket(plain, server_hostname=HOST)


@pytest.mark.parametrize("over", ["stream", "json"])
def test_the_command_line_comes_in_by_grpc_and_json(mesh: Mesh, folder: Path, over: str) -> None:
    """From this machine it knows the gateway; from elsewhere it is told of its authority."""
    elsewhere = {
        **mesh.environment,
        "TWINMESH_HOME": str(folder / "elsewhere"),
        "TWINMESH_GATEWAY": f"https://127.0.0.1:{mesh.port}",
        "TWINMESH_GATEWAY_AUTHORITIES": str(folder / "edge.pem"),
        "TWINMESH_GATEWAY_SERVER_NAME": HOST,
    }
    for name in ("CERTIFICATE", "KEY"):
        del elsewhere[f"TWINMESH_GATEWAY_TLS_{name}"]
    for asked in (mesh, Mesh(mesh.home, mesh.port, elsewhere, mesh.password)):
        asked.twinmesh("login", "--tenant", "demo", "--username", "admin", stdin=mesh.password + "\n")
        sent = asked.twinmesh("simulate", "--devices", "1", "--seconds", "1", "--over", over)
        assert "durable" in sent.stdout
    del elsewhere["TWINMESH_GATEWAY_AUTHORITIES"]
    failed = asked.twinmesh("query", "pump-7", check=False)
    assert failed.returncode == 1
    assert "CERTIFICATE_VERIFY_FAILED" in failed.stderr


def test_the_simulated_fleet_sends_over_tls(mesh: Mesh, folder: Path) -> None:
    with httpx.Client(
        base_url=f"https://127.0.0.1:{mesh.port}", verify=context(folder / "edge.pem"), timeout=30
    ) as client:
        login = {"tenant": "demo", "username": "admin", "password": mesh.password}
        names = {"sni_hostname": HOST}
        token = client.post("/v1/auth/login", json=login, extensions=names).json()["accessToken"]

        def is_heard_of() -> bool:
            answer = client.get(
                "/v1/twins?deviceTypeId=simulated",
                headers={"authorization": f"Bearer {token}"},
                extensions=names,
            )
            return any(twin["id"].startswith("demo-") and twin["metrics"] for twin in answer.json()["twins"])

        eventually(is_heard_of, "samples of the fleet are stored")


def test_a_certificate_that_is_replaced_is_taken_over(mesh: Mesh, folder: Path) -> None:
    before = shown(mesh.port)
    with httpx.Client(verify=context(folder / "edge.pem"), timeout=30) as open_before:
        url = f"https://127.0.0.1:{mesh.port}/healthz/ready"
        assert open_before.get(url, extensions={"sni_hostname": HOST}).is_success
        certificate(folder, "next", host=HOST)
        # One after the other: until both are there the former pair is shown.
        (folder / "next.key.pem").replace(folder / "edge.key.pem")
        (folder / "next.pem").replace(folder / "edge.pem")
        eventually(lambda: shown(mesh.port) != before, "the new certificate is shown")
        # Who is connected stays so.
        assert open_before.get(url, extensions={"sni_hostname": HOST}).is_success
    assert get(mesh, "/healthz/ready", folder / "edge.pem").is_success
    after = shown(mesh.port)
    (folder / "edge.pem").write_text("no certificate")
    log = mesh.home / "logs" / "launcher.log"
    eventually(lambda: "holds no certificate in PEM" in log.read_text(), "the launcher says so")
    assert shown(mesh.port) == after


def test_the_meshs_own_certificates_are_renewed_while_it_runs(mesh: Mesh) -> None:
    """Of the listener for devices and of MQTT, a month before they end."""
    before = shown(mesh.device_port)
    authority = read_authority(mesh.home / "ca")
    key = new_key()
    ending = authority.issue_for_server(
        ["127.0.0.1"], key.public_key(), now=datetime.now(UTC), life=timedelta(days=29)
    )
    trust = (mesh.home / "trust").resolve()
    (trust / "server.key.pem").write_bytes(key_pem(key))
    (trust / "server.pem").write_text(authority.chain(ending))
    for port in (mesh.device_port, mesh.mqtt_port):
        _until_renewed(port, before, ending)


def _until_renewed(port: int, *former: x509.Certificate) -> None:
    eventually(lambda: shown(port) not in former, "a new certificate is shown")
    assert shown(port).not_valid_after_utc - datetime.now(UTC) > timedelta(days=89)


def test_beyond_loopback_no_door_is_opened_without_tls(tmp_path: Path) -> None:
    for door, others in (("GATEWAY", "MQTT"), ("MQTT", "GATEWAY")):
        settings = {
            "TWINMESH_HOME": str(tmp_path / "home"),
            "TWINMESH_BIND": "0.0.0.0",
            f"TWINMESH_{others}_PLAINTEXT": "true",
        }
        failed = Mesh(tmp_path, 1, settings, "").twinmesh("up", check=False)
        assert failed.returncode == 1
        assert "0.0.0.0 is open to other machines" in failed.stderr
        assert f"TWINMESH_{door}_TLS_CERTIFICATE" in failed.stderr
        assert f"TWINMESH_{others}_TLS_CERTIFICATE" not in failed.stderr


def test_in_the_background_paths_are_from_the_caller_s_folder(tmp_path: Path) -> None:
    told = {f"TWINMESH_GATEWAY_TLS_{name}": f"{name}.pem" for name in ("CERTIFICATE", "KEY")}
    mesh = Mesh(tmp_path, 1, {**os.environ, "TWINMESH_HOME": str(tmp_path / "home"), **told}, "")
    failed = subprocess.run(
        mesh.command("up", "--detach"),
        cwd=tmp_path,
        env=mesh.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 1
    assert f"{tmp_path}/CERTIFICATE.pem cannot be read" in failed.stderr


def test_a_gateway_in_a_container_is_not_rendered_without_tls_either(tmp_path: Path) -> None:
    addresses = {f"TWINMESH_{name}_ADDRESS": "x:1" for name in ("AUTH", "ASSET", "INGEST", "TWIN")}
    outcomes = {}
    for name, more in {
        "refused": {},
        "wanted": {"TWINMESH_GATEWAY_PLAINTEXT": "true"},
        "published here": {"TWINMESH_GATEWAY_PUBLISHED": "127.0.0.1"},
        "TLS": {"TWINMESH_GATEWAY_TLS_CERTIFICATE": "/tls/c", "TWINMESH_GATEWAY_TLS_KEY": "/tls/k"},
    }.items():
        done = subprocess.run(
            [sys.executable, "-m", "gateway.render", tmp_path],
            env={
                **addresses,
                "TWINMESH_IDENTITY_DIR": str(identities.identity_dir("gateway")),
                "TWINMESH_BIND": "0.0.0.0",
                **more,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        outcomes[name] = (done.returncode, "is open to other machines" in done.stderr)
    assert outcomes == {
        "refused": (1, True),
        "wanted": (0, False),
        "published here": (0, False),
        "TLS": (0, False),
    }
