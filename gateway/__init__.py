"""The gateway: one Envoy configuration, rendered from one template for every way to run the mesh."""

from typing import Any

# A piece of Envoy's configuration, in the JSON form of its protobuf messages.
Config = dict[str, Any]
