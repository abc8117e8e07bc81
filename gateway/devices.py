"""The listener where devices show their certificates, made of the edge's.

Its certificate is the only credential there: auth_svc exchanges it for a token, which replaces whatever
else is sent. The files in its folder:

    ca.pem                    whom to trust
    crl.pem                   who is revoked; auth_svc keeps it current
    trust.json                the two as a secret, whose files Envoy watches
    server.pem, server.key.pem   the listener's own certificate chain and key
    server.json               the two as a secret, whose files Envoy watches
"""

from copy import deepcopy
from pathlib import Path

from gateway import Config, local_replies, routes, tls
from gateway.settings import DeviceDoor

CA, CRL, TRUST = "ca.pem", "crl.pem", "trust.json"
SERVER_CERTIFICATE, SERVER_KEY, SERVER = "server.pem", "server.key.pem", "server.json"
LISTENER = "devices"
_SECRET = "devices"  # noqa: S105 - a name
_SERVER_SECRET = "server"  # noqa: S105 - a name
_EXT_AUTHZ = "envoy.filters.http.ext_authz"
# What a device's key may be, and no SHA-1.
_SIGNATURES = [
    "ecdsa_secp256r1_sha256",
    "ecdsa_secp384r1_sha384",
    "ed25519",
    "rsa_pss_rsae_sha256",
    "rsa_pss_rsae_sha384",
    "rsa_pss_rsae_sha512",
]


def listener(edge: Config, door: DeviceDoor) -> Config:
    """Return the listener: the edge's in all but address, TLS, and how callers are known."""
    made = deepcopy(edge)
    made["name"] = LISTENER
    made["address"]["socket_address"]["port_value"] = door.port
    (chain,) = made["filter_chains"]
    chain["transport_socket"] = _tls(door.trust)
    manager = chain["filters"][0]["typed_config"]
    chain["transport_socket_connect_timeout"] = manager["request_headers_timeout"]
    # TLS ends here, so no proxy before it can tell an address.
    manager["xff_num_trusted_hops"] = 0
    manager["stat_prefix"] = manager["route_config"]["name"] = "devices"
    manager["local_reply_config"]["mappers"] = local_replies.mappers(for_devices=True)
    # A certificate is the only credential here.
    manager["http_filters"] = [
        each for each in manager["http_filters"] if each["name"] != routes.SIGNED_REQUESTS
    ]
    for each in manager["http_filters"]:
        if each["name"] == _EXT_AUTHZ:
            # Always, whatever the request carries; public rpcs need no identity here either.
            config = each["typed_config"]["extension_config"]["typed_config"]
            config["include_peer_certificate"] = True
            config["allowed_headers"] = {"patterns": [{"exact": ":path"}]}
            each["typed_config"] = config
    return made


def trust_secret(trust: Path, trust_domain: str) -> Config:
    """Return what stands in trust.json.

    Args:
        trust: the folder, as Envoy sees it.
        trust_domain: whose devices are let in.
    """
    context = {
        "trusted_ca": {"filename": str(trust / CA)},
        "crl": {"filename": str(trust / CRL)},
        # The root revokes nothing: the CA that issues is replaced with it.
        "only_verify_leaf_cert_crl": True,
        "match_typed_subject_alt_names": [
            {"san_type": "URI", "matcher": {"prefix": f"spiffe://{trust_domain}/tenant/"}}
        ],
    }
    return tls.validation_secret(_SECRET, context)


def server_secret(trust: Path) -> Config:
    """Return what stands in server.json.

    Args:
        trust: the folder, as Envoy sees it.
    """
    return tls.certificate_secret(
        _SERVER_SECRET, certificate=str(trust / SERVER_CERTIFICATE), key=str(trust / SERVER_KEY)
    )


def _tls(trust: Path) -> Config:
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{tls.TYPES}.DownstreamTlsContext",
            "require_client_certificate": True,
            # A resumed session would be one whose certificate nobody has looked at since.
            "disable_stateless_session_resumption": True,
            "disable_stateful_session_resumption": True,
            "common_tls_context": {
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_params": {
                    "tls_minimum_protocol_version": "TLSv1_3",
                    "tls_maximum_protocol_version": "TLSv1_3",
                    "signature_algorithms": _SIGNATURES,
                },
                "tls_certificate_sds_secret_configs": [tls.from_file(_SERVER_SECRET, trust / SERVER)],
                "validation_context_sds_secret_config": tls.from_file(_SECRET, trust / TRUST),
            },
        },
    }
