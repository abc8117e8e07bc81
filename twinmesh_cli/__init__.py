"""The launcher and command line of Twinmesh."""
