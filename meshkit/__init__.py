"""Shared runtime of the Twinmesh services. It imports no service."""
