"""Who owns tables in the mesh's database, in the order in which they are migrated."""

from meshkit.migrate import Owner

OWNERS: tuple[Owner, ...] = ()
