"""How Envoy turns JSON into gRPC and back: one configuration, and its form for server streams."""

from gateway import Config
from gateway.contract import Contract
from gateway.settings import GatewaySettings

FILTER = "envoy.filters.http.grpc_json_transcoder"
_TYPE = "type.googleapis.com/envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder"
_MAX_RESPONSE_BYTES = 32 * 1024 * 1024


def transcoder(settings: GatewaySettings, contract: Contract) -> Config:
    """Return the configuration of the transcoding filter."""
    return {
        "@type": _TYPE,
        "proto_descriptor": str(settings.descriptor_path.resolve()),
        "services": list(contract.services),
        "convert_grpc_status": True,
        "print_options": {"always_print_primitive_fields": True},
        "request_validation_options": {
            "reject_unknown_method": True,
            "reject_unknown_query_parameters": True,
            # Else PATCH /v1/devices/a {"id": "b"} would change b.
            "reject_binding_body_field_collisions": True,
        },
        # As browsers write a query: + is a space.
        "query_param_unescape_plus": True,
        "max_request_body_size": settings.max_json_body_bytes,
        "max_response_body_size": _MAX_RESPONSE_BYTES,
    }


def as_events(config: Config) -> Config:
    """Return a transcoder's configuration by which a stream of the server is server-sent events.

    Without it such a stream is one JSON array. A route replaces the filter's configuration
    whole, so this is all of it.
    """
    return {**config, "print_options": {**config["print_options"], "stream_sse_style_delimited": True}}
