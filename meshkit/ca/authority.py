"""The issuing CA: certificates of devices, services and servers, and the CRL."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshkit.ca.keys import CaKey, SigningKey
from meshkit.ca.names import DeviceName, ServiceName, domain_uri

DevicePublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
# Devices' clocks are behind now and then.
_BACKDATED = timedelta(minutes=5)
_ROOT_LIFE = timedelta(days=7300)
_ISSUING_LIFE = timedelta(days=3650)
# Envoy refuses everybody by a CRL that has ended, so it outlives a long absence of auth_svc.
CRL_LIFE = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Revoked:
    """A certificate on the CRL: its serial number and when it was revoked."""

    serial: int
    time: datetime


class CertificateAuthority:
    """Signs for devices, services and servers of one trust domain.

    Args:
        certificate: the issuing CA's.
        root: of the CA that signed it.
        key: the issuing CA's.

    Raises:
        ValueError: certificate and key do not belong together, or it names no trust domain.
    """

    def __init__(self, *, certificate: x509.Certificate, root: x509.Certificate, key: CaKey) -> None:
        if certificate.public_key() != key.public_key():
            raise ValueError("the key of the issuing CA is not that of its certificate")
        certificate.verify_directly_issued_by(root)
        self._certificate = certificate
        self._root = root
        self._key = key
        self.trust_domain = _trust_domain(certificate)

    @property
    def bundle(self) -> bytes:
        """Return the certificates of both CAs, PEM: whom to trust."""
        return _pem(self._certificate) + _pem(self._root)

    @property
    def ends(self) -> datetime:
        """Return when the issuing CA ends, which no certificate of it outlives."""
        return self._certificate.not_valid_after_utc

    def device_name(self, tenant: str, device_id: str) -> DeviceName:
        """Return the name of a device in this trust domain."""
        return DeviceName(self.trust_domain, tenant, device_id)

    def issue_for_device(
        self, name: DeviceName, public_key: DevicePublicKey, *, now: datetime, life: timedelta
    ) -> x509.Certificate:
        """Return a certificate of a device. It does not outlive the CA. May block."""
        return self._issue(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name.uri)]),
            [ExtendedKeyUsageOID.CLIENT_AUTH],
            name.device_id,
            public_key,
            now=now,
            life=life,
        )

    def issue_for_service(
        self, name: str, public_key: DevicePublicKey, *, now: datetime, life: timedelta
    ) -> x509.Certificate:
        """Return a certificate by which a service both calls and is called. May block.

        Its DNS name is the service's, whatever the host: by it callers know whom they have reached.
        """
        names = [
            x509.UniformResourceIdentifier(ServiceName(self.trust_domain, name).uri),
            x509.DNSName(name),
        ]
        return self._issue(
            x509.SubjectAlternativeName(names),
            [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH],
            name,
            public_key,
            now=now,
            life=life,
        )

    def issue_for_server(
        self, hosts: Sequence[str], public_key: DevicePublicKey, *, now: datetime, life: timedelta
    ) -> x509.Certificate:
        """Return a certificate of a server by whose names or addresses clients know it. May block."""
        return self._issue(
            x509.SubjectAlternativeName([_host(host) for host in hosts]),
            [ExtendedKeyUsageOID.SERVER_AUTH],
            hosts[0],
            public_key,
            now=now,
            life=life,
        )

    def chain(self, certificate: x509.Certificate) -> str:
        """Return a certificate and behind it the issuing CA's, PEM."""
        return (_pem(certificate) + _pem(self._certificate)).decode()

    def revocation_list(self, revoked: Iterable[Revoked], *, now: datetime) -> x509.CertificateRevocationList:
        """Return the CRL, good for CRL_LIFE. May block."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - _BACKDATED)
            .next_update(now + CRL_LIFE)
            .add_extension(self._key_identifier(), critical=False)
            # Rises with the clock that all processes of auth_svc share well enough.
            .add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
        )
        for each in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder().serial_number(each.serial).revocation_date(each.time).build()
            )
        return builder.sign(SigningKey(self._key), hashes.SHA256())

    def _issue(
        self,
        names: x509.SubjectAlternativeName,
        usages: Sequence[x509.ObjectIdentifier],
        common_name: str,
        public_key: DevicePublicKey,
        *,
        now: datetime,
        life: timedelta,
    ) -> x509.Certificate:
        ends = min(now + life, self.ends)
        return (
            x509.CertificateBuilder()
            .subject_name(_name(common_name))
            .issuer_name(self._certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now, ends) - _BACKDATED)
            .not_valid_after(ends)
            .add_extension(names, critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(self._key_identifier(), critical=False)
            .sign(SigningKey(self._key), hashes.SHA256())
        )

    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())


def root_certificate(key: CaKey, trust_domain: str, *, now: datetime) -> x509.Certificate:
    """Return the certificate of a root CA, signed by itself."""
    return _ca_certificate(
        key.public_key(), trust_domain, kind="Root", issuer=None, key=key, now=now, life=_ROOT_LIFE
    )


def issuing_certificate(
    public_key: ec.EllipticCurvePublicKey, root: x509.Certificate, root_key: CaKey, *, now: datetime
) -> x509.Certificate:
    """Return the certificate of an issuing CA, signed by a root."""
    return _ca_certificate(
        public_key,
        _trust_domain(root),
        kind="Issuing",
        issuer=root,
        key=root_key,
        now=now,
        life=_ISSUING_LIFE,
    )


def _ca_certificate(
    public_key: ec.EllipticCurvePublicKey,
    trust_domain: str,
    *,
    kind: str,
    issuer: x509.Certificate | None,
    key: CaKey,
    now: datetime,
    life: timedelta,
) -> x509.Certificate:
    subject = _name(f"Twinmesh {kind} CA {x509.random_serial_number():x}"[:64])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + life)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(domain_uri(trust_domain))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0 if issuer else 1), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(SigningKey(key), hashes.SHA256())
    )


def uris(certificate: x509.Certificate) -> list[str]:
    """Return the URIs by which a certificate names its subject.

    Raises:
        ValueError: its extensions cannot be read.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _trust_domain(certificate: x509.Certificate) -> str:
    found = [uri for uri in uris(certificate) if uri.startswith(domain_uri(""))]
    if len(found) != 1:
        raise ValueError("the certificate of the CA does not name one trust domain")
    return found[0].removeprefix(domain_uri(""))


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
