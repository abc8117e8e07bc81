"""Shared runtime of the Twinmesh services. It imports no service."""

import os

# No child of ours goes on with gRPC: all become other programs at once. gRPC's handlers of fork() are for
# those that do, and have crashed such children while other threads were in gRPC. Read when gRPC starts.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
