"""Schema `auth`."""

from meshkit.migrate import Owner, Role

OWNER = Owner("auth", __name__, roles=(Role("twinmesh_auth"),))
