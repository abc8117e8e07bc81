"""Certificates of the gateway's own, as secrets that Envoy reads anew when their files are replaced.

A secret is a file of JSON that names a PEM file of a certificate chain and one of its private key. Envoy
watches the folders of the two for renames: it takes the new pair as soon as both fit together, for new
connections, and keeps the old one while they do not.
"""

from pathlib import Path

from gateway import Config

EDGE_SECRET = "edge.json"  # noqa: S105 - a file
TYPES = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
_EDGE = "edge"
# A year. Browsers that were here over TLS come by nothing else from then on.
_HSTS = "max-age=31536000"


def certificate_secret(name: str, *, certificate: str, key: str) -> Config:
    """Return what stands in the file of a secret.

    Args:
        name: by which a listener or a cluster asks for it.
        certificate: path of the certificate chain as Envoy sees it.
        key: path of its private key.
    """
    pair = {"certificate_chain": {"filename": certificate}, "private_key": {"filename": key}}
    return _secret(name, {"tls_certificate": pair})


def validation_secret(name: str, context: Config) -> Config:
    """Return what stands in the file of a secret that tells whom to believe.

    Args:
        name: by which a listener or a cluster asks for it.
        context: Envoy's CertificateValidationContext.
    """
    return _secret(name, {"validation_context": context})


def _secret(name: str, content: Config) -> Config:
    return {"resources": [{"@type": f"{TYPES}.Secret", "name": name, **content}]}


def edge_secret(*, certificate: str, key: str) -> Config:
    """Return what stands in the file that `GatewaySettings.tls` names."""
    return certificate_secret(_EDGE, certificate=certificate, key=key)


def from_file(name: str, path: Path) -> Config:
    """Return how a listener or a cluster asks for a secret."""
    return {
        "name": name,
        "sds_config": {"resource_api_version": "V3", "path_config_source": {"path": str(path)}},
    }


def encrypt(edge: Config, secret: Path) -> None:
    """Make the main listener answer over TLS only.

    Args:
        edge: the listener; changed in place.
        secret: the file of its certificate.
    """
    (chain,) = edge["filter_chains"]
    manager = chain["filters"][0]["typed_config"]
    chain["transport_socket_connect_timeout"] = manager["request_headers_timeout"]
    chain["transport_socket"] = {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{TYPES}.DownstreamTlsContext",
            "common_tls_context": {
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_params": {
                    "tls_minimum_protocol_version": "TLSv1_2",
                    "tls_maximum_protocol_version": "TLSv1_3",
                },
                "tls_certificate_sds_secret_configs": [from_file(_EDGE, secret)],
            },
        },
    }
    (answers,) = (
        each["typed_config"]["mutations"]["response_mutations"]
        for each in manager["http_filters"]
        if each["name"] == "envoy.filters.http.header_mutation"
    )
    hsts = {"key": "strict-transport-security", "value": _HSTS}
    answers.append({"append": {"header": hsts, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}})
