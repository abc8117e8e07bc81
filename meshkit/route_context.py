"""What Envoy tells auth_svc of the route that a request has taken, beside the request."""

# The route's rpc is a stream.
STREAM = "stream"
