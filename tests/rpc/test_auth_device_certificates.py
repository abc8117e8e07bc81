"""Device certificates over the wire: issued, renewed, listed, revoked, exchanged for tokens."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from google.rpc import code_pb2

from auth_svc.roles import Role
from meshkit.ca.authority import CertificateAuthority
from meshkit.ca.folder import make_authority, read_authority
from meshkit.testing.auth import bearer
from meshkit.testing.certificates import csr, new_key
from meshkit.testing.database import TestDatabase
from tests.rpc.auth_app import AuthApp, error_info, refusal, running_auth, status_of, until
from tests.rpc.auth_devices import FakeDevices, fake_devices
from twinmesh.auth.v1 import device_certificate_service_pb2 as pb
from twinmesh.auth.v1 import tenant_service_pb2 as tenant_pb2

_Metadata = tuple[tuple[str, str], ...]
_DENIED = code_pb2.UNAUTHENTICATED


@dataclass(frozen=True, slots=True)
class Site:
    """auth_svc with a CA."""

    auth: AuthApp
    devices: FakeDevices
    authority: CertificateAuthority
    crl_file: Path
    admin: _Metadata

    async def issue(self, device_id: str = "pump-1", **fields: Any) -> pb.DeviceCertificate:
        """Issue a certificate for a new key."""
        request = pb.IssueDeviceCertificateRequest(device_id=device_id, **{"csr": csr(new_key()), **fields})
        answer: pb.DeviceCertificate = await self.auth.certificates.IssueDeviceCertificate(
            request, metadata=self.admin
        )
        return answer

    async def as_device(self, certificate: pb.DeviceCertificate) -> _Metadata:
        """Return the call metadata that Envoy gives a device."""
        answer = await self.auth.check_certificate(certificate.chain)
        assert answer.status.code == code_pb2.OK, answer
        (header,) = answer.ok_response.headers
        assert header.header.key == "authorization"
        return bearer(header.header.value.removeprefix("Bearer "))

    async def renew(self, caller: _Metadata) -> pb.DeviceCertificate:
        """Renew as a caller, for a new key."""
        request = pb.RenewDeviceCertificateRequest(csr=csr(new_key()))
        answer: pb.DeviceCertificate = await self.auth.certificates.RenewDeviceCertificate(
            request, metadata=caller
        )
        return answer

    async def revoke(self, certificate_id: str, caller: _Metadata | None = None) -> list[str]:
        """Revoke a certificate, as the administrator unless said otherwise."""
        request = pb.RevokeDeviceCertificateRequest(id=certificate_id)
        answer = await self.auth.certificates.RevokeDeviceCertificate(request, metadata=caller or self.admin)
        return list(answer.ids)

    async def is_denied(self, pem: str, *, caller: str = "gateway") -> bool:
        """Say whether Envoy is told to refuse a certificate."""
        answer = await self.auth.check_certificate(pem, caller=caller)
        assert answer.status.code in (code_pb2.OK, _DENIED)
        if answer.status.code == _DENIED:
            assert "CERTIFICATE_INVALID" in answer.denied_response.body
        return bool(answer.status.code == _DENIED)


@pytest.fixture
async def site(database: TestDatabase, tmp_path: Path) -> AsyncIterator[Site]:
    make_authority(tmp_path / "ca", "plant.example")
    trust = tmp_path / "trust"
    trust.mkdir()
    async with (
        fake_devices() as (devices, address),
        running_auth(
            database,
            peers={"asset_address": address},
            ca_dir=tmp_path / "ca",
            crl_file=trust / "crl.pem",
        ) as auth,
    ):
        authority = read_authority(tmp_path / "ca")
        yield Site(auth, devices, authority, trust / "crl.pem", await auth.as_user())


def _leaf(certificate: pb.DeviceCertificate) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate.chain.encode())


async def test_a_certificate_says_whose_it_is_and_is_found_again(site: Site) -> None:
    made = await site.issue(valid_days=7)
    leaf = _leaf(made)
    assert made.uri == "spiffe://plant.example/tenant/demo/device/pump-1"
    assert made.id == f"{leaf.serial_number:x}"
    assert made.expire_time.ToDatetime(UTC) == leaf.not_valid_after_utc
    assert made.expire_time.seconds - made.create_time.seconds in range(7 * 86_400 - 2, 7 * 86_400 + 1)
    assert (made.creator, made.renewed_from, made.HasField("revoke_time")) == ("user:admin", "", False)
    found = await site.auth.certificates.GetDeviceCertificate(
        pb.GetDeviceCertificateRequest(id=made.id), metadata=site.admin
    )
    assert found == made


async def test_certificates_are_listed_page_by_page_and_by_device(site: Site) -> None:
    made = [await site.issue(device) for device in ("pump-1", "pump-1", "pump-2")]
    found, token = [], ""
    while True:
        page = await site.auth.certificates.ListDeviceCertificates(
            pb.ListDeviceCertificatesRequest(page_size=2, page_token=token), metadata=site.admin
        )
        found += page.device_certificates
        token = page.next_page_token
        if not token:
            break
        assert len(page.device_certificates) == 2
    assert found == sorted(made, key=lambda each: each.id)
    of_device = await site.auth.certificates.ListDeviceCertificates(
        pb.ListDeviceCertificatesRequest(device_id="pump-2"), metadata=site.admin
    )
    assert list(of_device.device_certificates) == made[2:]


@pytest.mark.parametrize("device_id", ["absent", "off", "foreign"])
async def test_only_enabled_devices_of_the_tenant_get_one(site: Site, device_id: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await site.issue(device_id)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    info = error_info(status_of(refused.value))
    assert info.reason == "REFERENCE_NOT_FOUND"
    assert dict(info.metadata) == {"resource": "device", "id": device_id}
    assert refused.value.details() == f"device {device_id!r} does not exist, or is disabled"


async def test_bad_requests_say_which_field(site: Site) -> None:
    for fields in ({"csr": "no csr"}, {"csr": ""}, {"valid_days": 826}, {"device_id": "A b"}):
        request: dict[str, Any] = {"device_id": "pump-1", "csr": csr(new_key()), **fields}
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await site.issue(**request)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, fields
        assert next(iter(fields)) in str(refused.value.details())


async def test_roles_without_the_permission_issue_nothing(site: Site) -> None:
    await site.auth.add_user("demo", "olga", Role.OPERATOR)
    operator = await site.auth.as_user("demo", "olga")
    request = pb.IssueDeviceCertificateRequest(device_id="pump-1", csr=csr(new_key()))
    call = site.auth.certificates.IssueDeviceCertificate(request, metadata=operator)
    assert await refusal(call) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")


async def test_another_tenants_certificate_is_an_absent_one(site: Site) -> None:
    made = await site.issue()
    await site.auth.sql("INSERT INTO auth.tenant VALUES ('other', now())")
    await site.auth.add_user("other", "eve", Role.ADMIN)
    eve = await site.auth.as_user("other", "eve")
    told = []
    for certificate_id in (made.id, "abc"):
        for call in (
            site.auth.certificates.GetDeviceCertificate(
                pb.GetDeviceCertificateRequest(id=certificate_id), metadata=eve
            ),
            site.auth.certificates.RevokeDeviceCertificate(
                pb.RevokeDeviceCertificateRequest(id=certificate_id), metadata=eve
            ),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND
            told.append(str(refused.value.details()).replace(certificate_id, "…"))
    assert len(set(told)) == 1
    listed = await site.auth.certificates.ListDeviceCertificates(
        pb.ListDeviceCertificatesRequest(), metadata=eve
    )
    assert not listed.device_certificates
    assert not await site.is_denied(made.chain)


async def test_a_certificate_becomes_a_token_of_its_device(site: Site) -> None:
    made = await site.issue()
    ((_, header),) = await site.as_device(made)
    claims = jwt.decode(header.removeprefix("Bearer "), options={"verify_signature": False})
    assert (claims["sub"], claims["tenant"], claims["kind"]) == ("pump-1", "demo", "device")
    assert claims["perms"] == ["telemetry:write"]
    assert claims["cred_id"] == made.id
    assert claims["cred_exp"] == made.expire_time.seconds


async def test_only_the_gateway_is_believed_about_certificates(site: Site) -> None:
    made = await site.issue()
    assert not await site.is_denied(made.chain)
    # Which may ask about API keys.
    assert await site.is_denied(made.chain, caller="ingest_svc")


async def test_what_was_not_issued_here_is_refused(site: Site, tmp_path: Path) -> None:
    """Also when the CA itself has signed it, which it did not for this database."""
    made = await site.issue()
    make_authority(tmp_path / "foreign", "plant.example")
    foreign = read_authority(tmp_path / "foreign")
    now, life = datetime.now(UTC), timedelta(days=1)
    for authority in (foreign, site.authority):
        for tenant, device_id in (("demo", "pump-1"), ("absent", "pump-1")):
            name = authority.device_name(tenant, device_id)
            signed = authority.issue_for_device(name, new_key().public_key(), now=now, life=life)
            assert await site.is_denied(authority.chain(signed))
    assert await site.is_denied("no certificate")
    assert await site.is_denied(site.authority.bundle.decode())
    # The same serial number does not do.
    leaf = _leaf(made)
    builder = x509.CertificateBuilder(
        leaf.issuer,
        leaf.subject,
        new_key().public_key(),
        leaf.serial_number,
        leaf.not_valid_before_utc,
        leaf.not_valid_after_utc,
        list(leaf.extensions),
    )

    twin = builder.sign(new_key(), hashes.SHA256())
    # Whether it is looked up or compared with what is remembered.
    assert await site.is_denied(site.authority.chain(twin))
    assert not await site.is_denied(made.chain)
    assert await site.is_denied(site.authority.chain(twin))


async def test_an_expired_certificate_is_refused(site: Site) -> None:
    made = await site.issue()
    await site.auth.sql(
        "UPDATE auth.device_certificate SET expire_time = now() - interval '1 s' WHERE id = $1", made.id
    )
    assert await site.is_denied(made.chain)


async def test_a_device_renews_with_its_certificate_and_nobody_else(site: Site) -> None:
    old = await site.issue()
    new = await site.renew(await site.as_device(old))
    assert (new.device_id, new.renewed_from, new.creator) == ("pump-1", old.id, "device:pump-1")
    assert not await site.is_denied(new.chain)
    assert not await site.is_denied(old.chain)
    request = pb.RenewDeviceCertificateRequest(csr=csr(new_key()))
    call = site.auth.certificates.RenewDeviceCertificate(request, metadata=site.admin)
    assert await refusal(call) == (grpc.StatusCode.PERMISSION_DENIED, "CERTIFICATE_REQUIRED")
    site.devices.of["demo"]["pump-1"] = False
    call = site.auth.certificates.RenewDeviceCertificate(request, metadata=await site.as_device(new))
    assert await refusal(call) == (grpc.StatusCode.FAILED_PRECONDITION, "REFERENCE_NOT_FOUND")


async def test_a_device_does_nothing_else_with_certificates(site: Site) -> None:
    made = await site.issue()
    device = await site.as_device(made)
    for call in (
        site.auth.certificates.GetDeviceCertificate(
            pb.GetDeviceCertificateRequest(id=made.id), metadata=device
        ),
        site.auth.certificates.RevokeDeviceCertificate(
            pb.RevokeDeviceCertificateRequest(id=made.id), metadata=device
        ),
    ):
        assert await refusal(call) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")


async def test_revoking_ends_a_certificate_its_token_and_what_was_renewed_from_it(site: Site) -> None:
    first, bystander = await site.issue(), await site.issue()
    token = await site.as_device(first)
    second = await site.renew(token)
    third = await site.renew(await site.as_device(second))
    assert set(await site.revoke(first.id)) == {first.id, second.id, third.id}
    for each in (first, second, third):
        assert await site.is_denied(each.chain)
    assert not await site.is_denied(bystander.chain)
    request = pb.RenewDeviceCertificateRequest(csr=csr(new_key()))
    call = site.auth.certificates.RenewDeviceCertificate(request, metadata=token)
    assert await refusal(call) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REVOKED")
    assert await site.revoke(first.id) == []
    found = await site.auth.certificates.GetDeviceCertificate(
        pb.GetDeviceCertificateRequest(id=third.id), metadata=site.admin
    )
    assert found.HasField("revoke_time")


async def test_what_another_process_revokes_is_refused_soon(site: Site) -> None:
    made = await site.issue()
    assert not await site.is_denied(made.chain)
    await site.auth.revoke_certificate_elsewhere(made.id)
    await until(lambda: site.is_denied(made.chain))


async def test_the_crl_is_public_and_current_on_the_wire_and_in_its_file(site: Site) -> None:
    revoked, kept, expired = await site.issue(), await site.issue("pump-2"), await site.issue()
    await site.auth.sql(
        "UPDATE auth.device_certificate SET expire_time = now() - interval '1 s' WHERE id = $1", expired.id
    )
    for each in (revoked, expired):
        await site.revoke(each.id)

    async def wire(crl_format: pb.CrlFormat.ValueType) -> x509.CertificateRevocationList:
        answer = await site.auth.certificates.GetCertificateRevocationList(
            pb.GetCertificateRevocationListRequest(format=crl_format)
        )
        if crl_format == pb.CRL_FORMAT_PEM:
            assert answer.content_type == "application/x-pem-file"
            return x509.load_pem_x509_crl(answer.data)
        assert answer.content_type == "application/pkix-crl"
        return x509.load_der_x509_crl(answer.data)

    async def is_listed() -> bool:
        on_wire = [await wire(each) for each in (pb.CRL_FORMAT_DER, pb.CRL_FORMAT_PEM)]
        lists = [*on_wire, x509.load_pem_x509_crl(site.crl_file.read_bytes())]
        return all([entry.serial_number for entry in each] == [int(revoked.id, 16)] for each in lists)

    await until(is_listed)
    assert kept.id


async def test_without_a_ca_everything_else_goes_on(database: TestDatabase) -> None:
    async with (
        fake_devices() as (_, address),
        running_auth(database, peers={"asset_address": address}) as auth,
    ):
        request = pb.IssueDeviceCertificateRequest(device_id="pump-1", csr=csr(new_key()))
        call = auth.certificates.IssueDeviceCertificate(request, metadata=await auth.as_user())
        assert await refusal(call) == (grpc.StatusCode.FAILED_PRECONDITION, "CA_NOT_CONFIGURED")
        call = auth.certificates.GetCertificateRevocationList(pb.GetCertificateRevocationListRequest())
        assert await refusal(call) == (grpc.StatusCode.FAILED_PRECONDITION, "CA_NOT_CONFIGURED")


async def test_any_process_of_asset_svc_tells_of_devices(database: TestDatabase, tmp_path: Path) -> None:
    make_authority(tmp_path / "ca", "plant.example")
    async with (
        fake_devices() as (devices, address),
        running_auth(
            database,
            peers={"asset_address": f"127.0.0.1:1,{address}"},
            ca_dir=tmp_path / "ca",
            crl_file=tmp_path / "crl.pem",
        ) as auth,
    ):
        site = Site(
            auth, devices, read_authority(tmp_path / "ca"), tmp_path / "crl.pem", await auth.as_user()
        )
        assert (await site.issue()).uri.endswith("/pump-1")


async def test_a_suspended_tenants_devices_are_told_so_when_they_show_their_certificates(site: Site) -> None:
    await site.auth.add_user("system", "operator", Role.INSTALLATION_ADMIN)
    operator = await site.auth.as_user("system", "operator")
    certificate = await site.issue()
    device = await site.as_device(certificate)
    await site.auth.tenants.SuspendTenant(tenant_pb2.SuspendTenantRequest(id="demo"), metadata=operator)
    refused = await site.auth.check_certificate(certificate.chain)
    assert (refused.status.code, refused.denied_response.status.code) == (code_pb2.PERMISSION_DENIED, 403)
    assert "TENANT_SUSPENDED" in refused.denied_response.body
    # Only Envoy has seen the key used.
    assert await site.is_denied(certificate.chain, caller="ingest_svc")
    code, reason = await refusal(site.renew(device))
    assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REVOKED")
    await site.auth.tenants.ResumeTenant(tenant_pb2.ResumeTenantRequest(id="demo"), metadata=operator)
    await site.renew(await site.as_device(certificate))


async def test_certificates_end_with_their_device_and_not_with_the_next_of_its_id(site: Site) -> None:
    first = await site.issue()
    renewed = await site.renew(await site.as_device(first))
    other = await site.issue("pump-2")
    # asset_svc is away for us while it deletes; nothing is lost by that.
    site.devices.away = True
    site.devices.delete("demo", "pump-1")
    site.devices.make("demo", "pump-1")
    second = await site.issue()
    site.devices.away = False

    async def is_over() -> bool:
        return await site.is_denied(first.chain) and await site.is_denied(renewed.chain)

    await until(is_over)
    assert not await site.is_denied(second.chain)
    assert not await site.is_denied(other.chain)
    # The next of its id goes in turn.
    site.devices.delete("demo", "pump-1")

    async def is_over_too() -> bool:
        return await site.is_denied(second.chain)

    await until(is_over_too)
    assert not await site.is_denied(other.chain)


async def test_a_deleted_devices_certificate_does_not_become_the_next_ones(site: Site) -> None:
    """Not even in the moment before it is revoked."""
    caller = await site.as_device(await site.issue())
    site.devices.away = True
    site.devices.delete("demo", "pump-1")
    site.devices.make("demo", "pump-1")
    assert await refusal(site.renew(caller)) == (grpc.StatusCode.PERMISSION_DENIED, "CERTIFICATE_REQUIRED")


async def test_a_device_that_is_deleted_while_its_certificate_is_signed_gets_none(site: Site) -> None:
    def replace() -> None:
        # The certificate is not stored yet when the list tells of it.
        site.devices.after_answer = lambda: None
        site.devices.make("demo", "pump-1")

    site.devices.after_answer = replace
    assert await refusal(site.issue()) == (grpc.StatusCode.FAILED_PRECONDITION, "REFERENCE_NOT_FOUND")
    listed = await site.auth.certificates.ListDeviceCertificates(
        pb.ListDeviceCertificatesRequest(), metadata=site.admin
    )
    assert [each.HasField("revoke_time") for each in listed.device_certificates] == [True]
