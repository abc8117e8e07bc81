"""CSRs, of which only the public key counts."""

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from meshkit.ca.authority import DevicePublicKey

_CURVES = (ec.SECP256R1, ec.SECP384R1)
_RSA_BITS = range(2048, 8193)
_RSA_EXPONENT = 65_537


def public_key_of(csr: str) -> DevicePublicKey:
    """Return the key of a CSR (PKCS#10, PEM), whose holder has signed it.

    Raises:
        ValueError: it is none, its signature is not its key's, or the key is of a kind that is not taken;
            the text says what to do.
    """
    try:
        request = x509.load_pem_x509_csr(csr.encode())
        key = request.public_key()
        is_signed = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
        raise ValueError("must be a PKCS#10 request in PEM, -----BEGIN CERTIFICATE REQUEST-----") from None
    if not is_signed:
        raise ValueError("is not signed by its own key; make it again")
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size not in _RSA_BITS or key.public_numbers().e != _RSA_EXPONENT:
            raise ValueError("has an RSA key that is not of 2,048 to 8,192 bits with exponent 65,537")
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES):
        return key
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    raise ValueError("has a key that is neither P-256, P-384, Ed25519 nor RSA")
