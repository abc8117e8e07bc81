"""Devices at the gateway's listener for them: who comes in, as whom, and who does not."""

import signal
import socket
import ssl
import uuid
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import h2.events
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from gateway.settings import Upstream
from meshkit.ca.authority import CertificateAuthority
from meshkit.ca.folder import make_authority, read_authority
from meshkit.testing import envoy_admin
from meshkit.testing.auth import bearer
from meshkit.testing.certificates import DeviceKey, new_key
from meshkit.testing.mesh import Mesh, eventually
from tests.mesh.device_site import (
    HOST,
    Identity,
    alert,
    device,
    issue,
    reason,
    revoke,
    signed,
    tls,
    write_identity,
)
from tests.mesh.grpc_frames import framed
from tests.mesh.http2_client import Http2
from tests.rpc.ingest.streaming import Client, columns
from twinmesh.ingest.v1 import ingest_service_pb2_grpc
from twinmesh.ingest.v1.ingest_service_pb2 import IngestTelemetryRequest, IngestTelemetryResponse, Reading
from twinmesh.type.v1 import error_reason_pb2

_DEVICE, _OTHER = "temp-1", "temp-2"


@pytest.fixture(scope="module")
def authority(mesh: Mesh) -> CertificateAuthority:
    return read_authority(mesh.home / "ca")


@pytest.fixture
def identity(mesh: Mesh, admin_token: str, tmp_path: Path) -> Identity:
    return issue(mesh, admin_token, _DEVICE, tmp_path)


def _reading(device_id: str, value: float) -> dict[str, Any]:
    return {"deviceId": device_id, "numbers": {"temperature": value}}


def _stored(mesh: Mesh, token: str, device_id: str, value: float) -> bool:
    answer = httpx.get(
        f"{mesh.url}/v1/twins/{device_id}/history",
        params={"metrics": "temperature"},
        headers={"authorization": f"Bearer {token}"},
    )
    return any(value in metric["doubleValues"] for metric in answer.json()["metrics"])


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-256", "P-384", "Ed25519", "RSA"],
)
def test_what_a_device_sends_is_stored(
    mesh: Mesh, admin_token: str, tmp_path: Path, key: DeviceKey, chance: Any
) -> None:
    value = float(chance.randrange(1_000_000))
    with device(mesh, issue(mesh, admin_token, _DEVICE, tmp_path, key=key)) as client:
        me = client.get("/v1/auth/me").json()
        assert (me["tenant"], me["subject"], me["kind"]) == ("demo", _DEVICE, "device")
        answer = client.post("/v1/telemetry", json={"readings": [_reading(_DEVICE, value)]})
    assert answer.json()["storedSamples"] == "1", answer.text
    assert _stored(mesh, admin_token, _DEVICE, value)


async def test_a_gateway_streams_with_its_certificate(mesh: Mesh, identity: Identity) -> None:
    credentials = grpc.ssl_channel_credentials(
        (mesh.home / "ca" / "root.pem").read_bytes(),
        identity.key.read_bytes(),
        identity.certificate.read_bytes(),
    )
    async with grpc.aio.secure_channel(f"127.0.0.1:{mesh.device_port}", credentials) as channel:
        stub: Any = ingest_service_pb2_grpc.IngestServiceStub(channel)
        client = Client(stub.StreamTelemetry())
        await client.open(uuid.uuid4().hex)
        await client.define((_DEVICE, "temperature"), (_OTHER, "temperature"))
        await client.batch(1, columns(1.0, 2.0, aliases=[0, 1], lengths=[1, 1]))
        (result,) = await client.durable(1)
        assert result.stored_samples == 1
        assert [each.device_id for each in result.refusals] == [_OTHER]
        await client.close()


def test_a_gateway_writes_for_its_children_with_its_certificate_and_for_nobody_else(
    mesh: Mesh, admin_token: str, tmp_path: Path, chance: Any
) -> None:
    hub = f"hub-{chance.randrange(1_000_000)}"
    child, value = f"{hub}-child", float(chance.randrange(1_000_000))
    made = [
        {"id": hub, "deviceTypeId": "temperature-sensor", "role": "DEVICE_ROLE_GATEWAY"},
        {
            "id": child,
            "deviceTypeId": "temperature-sensor",
            "role": "DEVICE_ROLE_CHILD",
            "parentId": hub,
            "logicalId": "slot 1",
        },
    ]
    with httpx.Client(base_url=mesh.url, headers={"authorization": f"Bearer {admin_token}"}) as admin:
        for each in made:
            assert admin.post("/v1/devices", json=each).is_success
    with device(mesh, issue(mesh, admin_token, hub, tmp_path)) as client:
        readings = [_reading(child, value), _reading(_OTHER, value)]
        answer = client.post("/v1/telemetry", json={"readings": readings}).json()
    assert answer["storedSamples"] == "1"
    assert [(each["deviceId"], each["reason"]) for each in answer["refusals"]] == [
        (_OTHER, "ERROR_REASON_DEVICE_NOT_OWN")
    ]
    assert _stored(mesh, admin_token, child, value)
    assert not _stored(mesh, admin_token, _OTHER, value)


def test_a_device_s_message_that_does_not_end_is_kept_from_the_service(
    mesh: Mesh, identity: Identity
) -> None:
    context = tls(mesh, identity)
    context.set_alpn_protocols(["h2"])
    port, let_in = envoy_admin.port_of(mesh), "http.devices.ext_authz.ok"
    before, let_in_before = envoy_admin.sent_on(port, Upstream.INGEST), envoy_admin.counted(port, let_in)
    body = framed(IngestTelemetryRequest(readings=[Reading(device_id=_OTHER, numbers={"temperature": 1})]))
    plain = socket.create_connection((HOST, mesh.device_port), timeout=60)
    with Http2(context.wrap_socket(plain, server_hostname=HOST), HOST) as client:
        stream = client.open_rpc("/twinmesh.ingest.v1.IngestService/IngestTelemetry")
        client.h2.send_data(stream, body[:-1])
        client.settle()
        eventually(lambda: envoy_admin.counted(port, let_in) > let_in_before, "the device is let in")
        assert envoy_admin.sent_on(port, Upstream.INGEST) == before
        client.h2.send_data(stream, body[-1:], end_stream=True)
        client.flush()
        answer = next(each for each in client.events() if isinstance(each, h2.events.DataReceived))
    (refusal,) = IngestTelemetryResponse.FromString(answer.data[5:]).refusals
    assert refusal.reason == error_reason_pb2.ERROR_REASON_DEVICE_NOT_OWN


def test_a_tls_handshake_that_does_not_end_ends_the_connection(mesh: Mesh) -> None:
    with socket.create_connection(("127.0.0.1", mesh.device_port), timeout=60) as slow:
        # The beginning of a ClientHello.
        slow.sendall(b"\x16\x03\x01\x02\x00\x01")
        with suppress(ConnectionResetError):
            assert slow.recv(1) == b""


@pytest.mark.parametrize("device_id", [_OTHER, "absent"])
def test_a_device_cannot_write_for_another(
    mesh: Mesh, admin_token: str, identity: Identity, device_id: str, chance: Any
) -> None:
    value = float(chance.randrange(1_000_000))
    with device(mesh, identity) as client:
        answer = client.post("/v1/telemetry", json={"readings": [_reading(device_id, value)]})
    assert answer.status_code == 200, answer.text
    (refusal,) = answer.json()["refusals"]
    assert refusal["reason"] == "ERROR_REASON_DEVICE_NOT_OWN"
    assert answer.json()["storedSamples"] == "0"
    if device_id == _OTHER:
        assert not _stored(mesh, admin_token, _OTHER, value)


def test_the_certificate_is_the_only_credential_there(
    mesh: Mesh, admin_token: str, identity: Identity
) -> None:
    for headers in (
        {"authorization": f"Bearer {admin_token}"},
        {"authorization": "Bearer nonsense"},
        {
            "x-forwarded-client-cert": "URI=spiffe://twinmesh/tenant/demo/device/temp-2",
            "x-tenant-id": "rival",
        },
        {"x-gateway-credential": "guessed"},
    ):
        with device(mesh, identity, **headers) as client:
            me = client.get("/v1/auth/me").json()
            assert (me["tenant"], me["subject"]) == ("demo", _DEVICE), headers
            denied = client.get("/v1/devices")
            assert (denied.status_code, reason(denied)) == (403, "PERMISSION_MISSING"), headers


def test_certificates_in_headers_are_none(mesh: Mesh, identity: Identity) -> None:
    """Who comes in at the edge may say what he likes."""
    pem = identity.certificate.read_text().replace("\n", "%0A")
    for headers in (
        {"x-forwarded-client-cert": f'Cert="{pem}"'},
        {"x-forwarded-client-cert": "URI=spiffe://twinmesh/tenant/demo/device/temp-1"},
    ):
        answer = httpx.get(f"{mesh.url}/v1/auth/me", headers=headers)
        assert (answer.status_code, reason(answer)) == (401, "CREDENTIAL_MISSING")


def test_envoys_admin_interface_shows_no_secrets(mesh: Mesh, identity: Identity) -> None:
    shown = httpx.get(f"http://127.0.0.1:{envoy_admin.port_of(mesh)}/config_dump?include_eds").text
    assert "spiffe://twinmesh/service/auth_svc" in shown
    assert "PRIVATE KEY" not in shown
    assert "PRIVATE KEY" not in (mesh.home / "envoy" / "envoy.json").read_text()


def test_nobody_comes_in_without_a_good_certificate(
    mesh: Mesh, authority: CertificateAuthority, tmp_path: Path
) -> None:
    assert "alert certificate required" in alert(mesh, tls(mesh, None))
    expired = signed(authority, tmp_path, device_id=_DEVICE, ended=timedelta(minutes=1))
    assert "alert certificate expired" in alert(mesh, tls(mesh, expired))
    make_authority(tmp_path / "foreign", authority.trust_domain)
    foreign = signed(read_authority(tmp_path / "foreign"), tmp_path, device_id=_DEVICE)
    assert "alert unknown ca" in alert(mesh, tls(mesh, foreign))


def test_names_of_others_than_devices_do_not_come_in(
    mesh: Mesh, authority: CertificateAuthority, tmp_path: Path
) -> None:
    key = new_key()
    now, life = datetime.now(UTC), timedelta(days=1)
    server = authority.issue_for_server(["localhost"], key.public_key(), now=now, life=life)
    as_client = write_identity(tmp_path, "server", authority.chain(server), key)
    assert "certificate" in alert(mesh, tls(mesh, as_client))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1(_1)? is deprecated:DeprecationWarning")
def test_older_versions_of_tls_do_not_come_in(
    mesh: Mesh, identity: Identity, version: ssl.TLSVersion
) -> None:
    context = tls(mesh, identity, version=version)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    assert "alert protocol version" in alert(mesh, context)


def test_what_the_ca_signed_but_nobody_issued_is_refused(
    mesh: Mesh, authority: CertificateAuthority, tmp_path: Path
) -> None:
    with device(mesh, signed(authority, tmp_path, device_id=_DEVICE)) as client:
        answer = client.post("/v1/telemetry", json={"readings": [_reading(_DEVICE, 1.0)]})
    assert (answer.status_code, reason(answer)) == (401, "CERTIFICATE_INVALID")


def test_a_revoked_certificate_ends_for_open_connections_and_new_ones(
    mesh: Mesh, admin_token: str, identity: Identity
) -> None:
    with device(mesh, identity) as client:
        assert client.get("/v1/auth/me").is_success
        assert revoke(mesh, admin_token, identity.id) == [identity.id]
        # The connection is open still; each request is looked at.
        answer = client.get("/v1/auth/me")
        assert (answer.status_code, reason(answer)) == (401, "CERTIFICATE_INVALID")
    eventually(
        lambda: "alert certificate revoked" in alert(mesh, tls(mesh, identity), wait_s=1),
        "Envoy has read the new CRL",
    )
    crl = x509.load_der_x509_crl(httpx.get(f"{mesh.url}/v1/deviceCertificates:crl").content)
    assert crl.get_revoked_certificate_by_serial_number(int(identity.id, 16)) is not None


def test_certificates_end_with_their_device_though_auth_svc_was_away(
    mesh: Mesh, admin_token: str, tmp_path: Path
) -> None:
    device_id = f"gone-{uuid.uuid4().hex[:8]}"
    made = {"id": device_id, "deviceTypeId": "temperature-sensor"}
    with httpx.Client(base_url=mesh.url, headers=dict(bearer(admin_token)), timeout=30) as admin:
        assert admin.post("/v1/devices", json=made).is_success
        old = issue(mesh, admin_token, device_id, tmp_path)
        with device(mesh, old) as client:
            assert client.get("/v1/auth/me").json()["subject"] == device_id
            mesh.signal("auth_svc", signal.SIGSTOP)
            try:
                assert admin.delete(f"/v1/devices/{device_id}").is_success
                assert admin.post("/v1/devices", json=made).is_success
            finally:
                mesh.signal("auth_svc", signal.SIGCONT)
            eventually(
                lambda: client.get("/v1/auth/me").status_code == 401,
                "the former device's certificate is over",
            )
        # The gateway takes a while to believe in a process that did not answer.
        eventually(lambda: admin.get("/v1/deviceCertificates").is_success, "auth_svc is back")
        new = issue(mesh, admin_token, device_id, tmp_path)
    with device(mesh, new) as client:
        assert client.get("/v1/auth/me").json()["subject"] == device_id
    eventually(
        lambda: "alert certificate revoked" in alert(mesh, tls(mesh, old), wait_s=1),
        "the former device's certificate is on the CRL",
    )


def test_a_person_issues_renews_lists_and_revokes_on_the_command_line(
    mesh: Mesh, admin_token: str, tmp_path: Path
) -> None:
    asked = Mesh(mesh.home, mesh.port, {**mesh.environment, "TWINMESH_API_KEY": admin_token}, mesh.password)
    old, new = tmp_path / "old.pem", tmp_path / "new.pem"
    asked.twinmesh("certs", "issue", _OTHER, "--out", str(old), "--days", "3")
    assert (tmp_path / "old.key.pem").stat().st_mode & 0o777 == 0o600
    asked.twinmesh("ca", "show", "--out", str(tmp_path / "ca.pem"))
    show = [
        "--certificate",
        str(old),
        "--key",
        str(tmp_path / "old.key.pem"),
        "--ca",
        str(tmp_path / "ca.pem"),
    ]
    asked.twinmesh("certs", "renew", *show, "--out", str(new))
    with device(mesh, Identity(new, tmp_path / "new.key.pem")) as client:
        assert client.get("/v1/auth/me").json()["subject"] == _OTHER
    first, second = (
        f"{x509.load_pem_x509_certificate(path.read_bytes()).serial_number:x}" for path in (old, new)
    )
    listed = asked.twinmesh("certs", "list", "--device", _OTHER).stdout
    assert first in listed
    assert second in listed
    assert f'"renewedFrom": "{first}"' in asked.twinmesh("certs", "show", second).stdout
    answer = asked.twinmesh("certs", "revoke", first).stdout
    assert answer.splitlines() == [f"revoked {first}", f"revoked {second}"]
    # Envoy refuses it once it has the CRL, auth_svc until then.
    with device(mesh, Identity(new, tmp_path / "new.key.pem")) as client, suppress(httpx.TransportError):
        assert client.get("/v1/auth/me").status_code == 401
    fresh = tmp_path / "another" / "ca"
    elsewhere = Mesh(mesh.home, mesh.port, {**mesh.environment, "TWINMESH_CA_DIR": str(fresh)}, mesh.password)
    assert "move that to where nobody finds it" in " ".join(elsewhere.twinmesh("ca", "init").stdout.split())
    assert {path.stat().st_mode & 0o777 for path in fresh.glob("*.key.pem")} == {0o600}
    assert elsewhere.twinmesh("ca", "show").stdout.encode() == read_authority(fresh).bundle
    failed = asked.twinmesh("ca", "init", check=False)
    assert failed.returncode == 1
    assert "is there already" in failed.stderr
