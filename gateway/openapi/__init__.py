"""The OpenAPI document of the JSON surface, made from the contract by `make generate`.

`document` holds the paths, `schemas` the messages as proto3 JSON has them, `rules` what
protovalidate asks of fields, `errors` the one shape of errors, `comments` the contract's words.
"""

from gateway.openapi.document import document

__all__ = ["document"]
