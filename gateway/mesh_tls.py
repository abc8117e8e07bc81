"""How Envoy and the services know each other: TLS 1.3 with certificates on both ends.

Envoy's own certificate comes from the folder of its identity (meshkit/service_identity.py), in which
there are two more files:

    identity.json, authorities.json   the two as secrets, whose files Envoy watches
"""

import json
from pathlib import Path

from gateway import Config, tls
from gateway.settings import GatewayIdentity, Upstream
from meshkit.ca.folder import publish
from meshkit.ca.names import ServiceName
from meshkit.service_identity import AUTHORITIES, IDENTITY

_OWN, _AUTHORITIES = "identity", "authorities"


def write_secrets(folder: Path) -> None:
    """Write the files of secrets into the folder of Envoy's identity, at the path where Envoy sees it.

    Raises:
        OSError: it cannot be written.
    """
    own, authorities = str(folder / IDENTITY), {"trusted_ca": {"filename": str(folder / AUTHORITIES)}}
    for name, secret in (
        (_OWN, tls.certificate_secret(_OWN, certificate=own, key=own)),
        (_AUTHORITIES, tls.validation_secret(_AUTHORITIES, authorities)),
    ):
        publish(folder / f"{name}.json", json.dumps(secret, indent=1).encode())


def transport_socket(upstream: Upstream, identity: GatewayIdentity) -> Config:
    """Return how Envoy connects to a service: as itself, and to nobody who is not that service."""
    name = ServiceName(identity.trust_domain, upstream.value)
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{tls.TYPES}.UpstreamTlsContext",
            "sni": upstream.value,
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                "tls_params": {
                    "tls_minimum_protocol_version": "TLSv1_3",
                    "tls_maximum_protocol_version": "TLSv1_3",
                },
                "tls_certificate_sds_secret_configs": [tls.from_file(_OWN, identity.folder / f"{_OWN}.json")],
                "combined_validation_context": {
                    "default_validation_context": {
                        "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": name.uri}}]
                    },
                    "validation_context_sds_secret_config": tls.from_file(
                        _AUTHORITIES, identity.folder / f"{_AUTHORITIES}.json"
                    ),
                },
            },
        },
    }
