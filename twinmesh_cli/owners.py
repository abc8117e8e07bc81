"""Who owns tables in the mesh's database, in the order in which they are migrated."""

import asset_svc.migrations
import auth_svc.migrations
import telemetry_store.migrations
from meshkit.migrate import Owner

OWNERS: tuple[Owner, ...] = (
    auth_svc.migrations.OWNER,
    asset_svc.migrations.OWNER,
    telemetry_store.migrations.OWNER,
)
