"""DeviceCertificateService."""

import re

from cryptography.hazmat.primitives import serialization
from google.api import httpbody_pb2

from auth_svc.device_certificates import DeviceCertificate, DeviceCertificates
from auth_svc.revocation_list import RevocationList
from meshkit import audit, paging
from meshkit.identity import current_principal
from twinmesh.auth.v1 import device_certificate_service_pb2 as pb
from twinmesh.auth.v1 import device_certificate_service_pb2_grpc

_DEFAULT_PAGE = 100
_LONGEST_PAGE = 1000
_ID = re.compile("[0-9a-f]{1,40}")
_DER = "application/pkix-crl"
_PEM = "application/x-pem-file"


class DeviceCertificateServicer(device_certificate_service_pb2_grpc.DeviceCertificateServiceServicer):
    """Serves twinmesh.auth.v1.DeviceCertificateService.

    Args:
        certificates: the rules.
        revocation_list: the CRL.
    """

    def __init__(self, *, certificates: DeviceCertificates, revocation_list: RevocationList) -> None:
        self._certificates = certificates
        self._revocation_list = revocation_list

    async def IssueDeviceCertificate(
        self, request: pb.IssueDeviceCertificateRequest, context: object
    ) -> pb.DeviceCertificate:
        """Issue a certificate."""
        audit.changed(field.name for field, _ in request.ListFields())
        return _message(
            await self._certificates.issue(
                current_principal(),
                device_id=request.device_id,
                csr=request.csr,
                valid_days=request.valid_days,
            )
        )

    async def RenewDeviceCertificate(
        self, request: pb.RenewDeviceCertificateRequest, context: object
    ) -> pb.DeviceCertificate:
        """Issue a certificate to the device that calls."""
        audit.changed(["csr"])
        return _message(await self._certificates.renew(current_principal(), csr=request.csr))

    async def GetDeviceCertificate(
        self, request: pb.GetDeviceCertificateRequest, context: object
    ) -> pb.DeviceCertificate:
        """Answer a certificate."""
        return _message(await self._certificates.get(current_principal().tenant, request.id))

    async def ListDeviceCertificates(
        self, request: pb.ListDeviceCertificatesRequest, context: object
    ) -> pb.ListDeviceCertificatesResponse:
        """List the tenant's certificates."""
        tenant = current_principal().tenant
        question = ["device_certificates", tenant, request.device_id]
        found, more = await self._certificates.page(
            tenant,
            device_id=request.device_id,
            after=_position(paging.decode(question, request.page_token)),
            limit=paging.page_size(request.page_size, default=_DEFAULT_PAGE, maximum=_LONGEST_PAGE),
        )
        return pb.ListDeviceCertificatesResponse(
            device_certificates=[_message(certificate) for certificate in found],
            next_page_token=paging.encode(question, found[-1].id) if more else "",
        )

    async def RevokeDeviceCertificate(
        self, request: pb.RevokeDeviceCertificateRequest, context: object
    ) -> pb.RevokeDeviceCertificateResponse:
        """Revoke a certificate and what was renewed from it."""
        audit.changed(["revoke_time"])
        revoked = await self._certificates.revoke(current_principal().tenant, request.id)
        return pb.RevokeDeviceCertificateResponse(ids=revoked)

    async def GetCertificateRevocationList(
        self, request: pb.GetCertificateRevocationListRequest, context: object
    ) -> httpbody_pb2.HttpBody:
        """Answer the CRL."""
        current = self._revocation_list.current()
        if request.format == pb.CRL_FORMAT_PEM:
            return httpbody_pb2.HttpBody(
                content_type=_PEM, data=current.public_bytes(serialization.Encoding.PEM)
            )
        return httpbody_pb2.HttpBody(content_type=_DER, data=current.public_bytes(serialization.Encoding.DER))


def _position(after: object | None) -> str:
    if after is None:
        return ""
    if not isinstance(after, str) or not _ID.fullmatch(after):
        raise paging.invalid_token()
    return after


def _message(certificate: DeviceCertificate) -> pb.DeviceCertificate:
    message = pb.DeviceCertificate(
        id=certificate.id,
        device_id=certificate.device_id,
        uri=certificate.uri,
        chain=certificate.chain,
        fingerprint=certificate.fingerprint.hex(),
        renewed_from=certificate.renewed_from or "",
        creator=certificate.creator,
    )
    message.create_time.FromMicroseconds(certificate.create_us)
    message.expire_time.FromMicroseconds(certificate.expire_us)
    if certificate.revoke_us is not None:
        message.revoke_time.FromMicroseconds(certificate.revoke_us)
    return message
