"""Whether a door has TLS, and whether it may be opened without."""

from meshkit.addresses import is_loopback


def refusal(door: str, bind: str, *, has_tls: bool, allows_plaintext: bool) -> str | None:
    """Say why a door must not be opened, None when it may.

    Args:
        door: GATEWAY or MQTT, as in the names of its variables.
        bind: the address by which it is reached.
        has_tls: whether it has a certificate.
        allows_plaintext: whether the operator does without.
    """
    if has_tls or allows_plaintext or is_loopback(bind):
        return None
    return (
        f"{bind} is open to other machines, and without TLS passwords, keys and tokens can be read on the"
        f" way: set TWINMESH_{door}_TLS_CERTIFICATE and TWINMESH_{door}_TLS_KEY; or, if a proxy that ends"
        f" TLS stands before it, TWINMESH_{door}_PLAINTEXT=true"
    )


def unpaired(door: str, certificate: object, key: object) -> str | None:
    """Say that a door's certificate and key go together, None when both are given or neither."""
    if bool(certificate) == bool(key):
        return None
    return f"TWINMESH_{door}_TLS_CERTIFICATE and TWINMESH_{door}_TLS_KEY go together"
