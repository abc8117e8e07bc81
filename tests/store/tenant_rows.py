"""A walk over everything that has rows of tenants."""

from collections import defaultdict
from collections.abc import Mapping

import asyncpg

_TABLES = """
SELECT class.oid::regclass::text AS name
FROM pg_class AS class
JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
JOIN pg_attribute AS attribute ON attribute.attrelid = class.oid AND attribute.attname = 'tenant_id'
WHERE class.relkind IN ('r', 'p') AND NOT class.relispartition
  AND nspname !~ '^pg_' AND nspname <> 'information_schema'
ORDER BY name
"""


async def tenant_rows(connection: asyncpg.Connection) -> Mapping[str, Mapping[str, int]]:
    """Return by tenant how many rows each table has of it, found in PostgreSQL's catalogs; none: no entry.

    Args:
        connection: of the migrator, who sees everything.
    """
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for table in await connection.fetch(_TABLES):
        name = table["name"]
        for row in await connection.fetch(f"SELECT tenant_id, count(*) AS n FROM {name} GROUP BY tenant_id"):
            found[row["tenant_id"]][name] = row["n"]
    return found
