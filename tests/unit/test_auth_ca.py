"""The CA: what it signs, what it takes, and how its keys lie in a folder."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store

from meshkit.ca.authority import CertificateAuthority, Revoked, uris
from meshkit.ca.folder import make_authority, publish, read_authority
from meshkit.ca.keys import FileKey
from meshkit.ca.names import DeviceName
from meshkit.ca.requests import public_key_of
from meshkit.testing.certificates import DeviceKey, csr, new_key

_NAME = DeviceName("plant.example", "demo", "pump-1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "ca"
    make_authority(made, "plant.example")
    return made


@pytest.fixture
def now(folder: Path) -> datetime:
    """The present second, when the CA is there."""
    return datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def authority(folder: Path) -> CertificateAuthority:
    return read_authority(folder)


def test_a_device_is_named_by_its_only_uri_and_chains_to_the_root(
    folder: Path, authority: CertificateAuthority, now: datetime
) -> None:
    key = new_key()
    signed = authority.issue_for_device(_NAME, key.public_key(), now=now, life=timedelta(days=90))
    assert uris(signed) == ["spiffe://plant.example/tenant/demo/device/pump-1"]
    assert signed.public_key() == key.public_key()
    assert signed.not_valid_after_utc == now + timedelta(days=90)
    root = x509.load_pem_x509_certificate((folder / "root.pem").read_bytes())
    _, issuing = x509.load_pem_x509_certificates(authority.chain(signed).encode())
    verifier = PolicyBuilder().store(Store([root])).time(now).build_client_verifier()
    verified = verifier.verify(signed, [issuing])
    assert verified.chain[-1] == root
    usage = signed.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_no_certificate_outlives_the_ca(authority: CertificateAuthority, now: datetime) -> None:
    life = timedelta(days=100_000)
    signed = authority.issue_for_device(_NAME, new_key().public_key(), now=now, life=life)
    issuing = x509.load_pem_x509_certificates(authority.bundle)[0]
    assert signed.not_valid_after_utc == issuing.not_valid_after_utc


def test_the_crl_names_serial_numbers_and_is_signed(authority: CertificateAuthority, now: datetime) -> None:
    made = authority.revocation_list([Revoked(0xABC, now)], now=now)
    found = made.get_revoked_certificate_by_serial_number(0xABC)
    assert found is not None
    assert found.revocation_date_utc == now
    assert made.get_revoked_certificate_by_serial_number(0xABD) is None
    key = x509.load_pem_x509_certificates(authority.bundle)[0].public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert made.is_signature_valid(key)


def test_keys_are_their_owners_alone_and_a_ca_is_made_once(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("root.key.pem", "issuing.key.pem"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        make_authority(folder, "plant.example")
    assert not [each for each in folder.parent.iterdir() if each != folder]
    (folder / "issuing.key.pem").chmod(0o640)
    with pytest.raises(ValueError, match="chmod 600"):
        read_authority(folder)


class _Elsewhere:
    """A key of which only signatures come out, as of Vault or a PKCS#11 token; counts them."""

    def __init__(self, key: FileKey) -> None:
        self._key = key
        self.signed = 0

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._key.public_key()

    def sign(self, tbs: bytes) -> bytes:
        self.signed += 1
        return self._key.sign(tbs)


def test_a_key_that_only_signs_is_enough_for_all_that_the_ca_does(folder: Path, now: datetime) -> None:
    issuing, root = (
        x509.load_pem_x509_certificate((folder / name).read_bytes()) for name in ("issuing.pem", "root.pem")
    )
    key = _Elsewhere(FileKey.read(folder / "issuing.key.pem"))
    authority = CertificateAuthority(certificate=issuing, root=root, key=key)
    signed = authority.issue_for_device(_NAME, new_key().public_key(), now=now, life=timedelta(days=1))
    signed.verify_directly_issued_by(issuing)
    crl = authority.revocation_list([Revoked(serial=signed.serial_number, time=now)], now=now)
    assert crl.is_signature_valid(issuing.public_key())  # type: ignore[arg-type] # It is an elliptic curve's.
    assert key.signed == 2


def test_the_roots_key_may_be_elsewhere_and_the_issuing_key_must_fit(folder: Path) -> None:
    (folder / "root.key.pem").unlink()
    assert read_authority(folder).trust_domain == "plant.example"
    (folder / "issuing.key.pem").unlink()
    FileKey.generate().write(folder / "issuing.key.pem")
    with pytest.raises(ValueError, match="not that of its certificate"):
        read_authority(folder)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
)
def test_of_a_csr_only_the_key_counts(authority: CertificateAuthority, now: datetime, key: DeviceKey) -> None:
    public_key = public_key_of(csr(key, common_name="spiffe://plant.example/tenant/demo/device/boiler"))
    assert public_key == key.public_key()
    signed = authority.issue_for_device(_NAME, public_key, now=now, life=timedelta(days=1))
    assert uris(signed) == [_NAME.uri]
    assert "boiler" not in signed.subject.rfc4514_string()


def _other_signature() -> str:
    request = x509.load_pem_x509_csr(csr(new_key()).encode())
    # The last bytes are the signature's.
    spoiled = request.public_bytes(serialization.Encoding.DER)[:-1] + b"\x01"
    return x509.load_der_x509_csr(spoiled).public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "PKCS#10"),
        ("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "PKCS#10"),
        (_other_signature(), "not signed by its own key"),
        (csr(rsa.generate_private_key(65537, 1024)), "2,048"),
        (csr(ec.generate_private_key(ec.SECP521R1())), "neither P-256"),
        (csr(ec.generate_private_key(ec.SECP256K1())), "neither P-256"),
        (csr(dsa.generate_private_key(2048)), "neither P-256"),  # type: ignore[arg-type]
    ],
)
def test_csrs_that_are_not_taken(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        public_key_of(text)


@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://plant.example/tenant/demo/device/",
        "spiffe://plant.example/tenant/demo/device/a/b",
        "spiffe://plant.example/tenant/demo/device/A",
        "spiffe://plant.example/tenant/../device/a",
        "spiffe://plant.example/service/ingest_svc",
        "https://plant.example/tenant/demo/device/a",
        "spiffe://plant.example/tenant/demo/device/a\n",
    ],
)
def test_names_that_are_no_devices(uri: str) -> None:
    with pytest.raises(ValueError, match="names no device"):
        DeviceName.parse(uri)


def test_a_published_file_appears_whole_and_for_everybody(tmp_path: Path) -> None:
    path = tmp_path / "crl.pem"
    secret = tmp_path / "secret"
    secret.write_bytes(b"kept")
    path.symlink_to(secret)
    publish(path, b"new")
    assert (path.read_bytes(), secret.read_bytes()) == (b"new", b"kept")
    assert path.stat().st_mode & 0o777 == 0o644
    assert sorted(each.name for each in tmp_path.iterdir()) == ["crl.pem", "secret"]
