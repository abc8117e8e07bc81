"""Schema `asset`: assets, devices, and their types."""

from meshkit.migrate import Owner, Role

SERVICE_ROLE = "twinmesh_asset"

OWNER = Owner(
    "asset",
    __name__,
    roles=(
        # Filters that are off are constants of the plan (`$3 = '' OR …`), not of every row.
        Role(SERVICE_ROLE, settings={"plan_cache_mode": "force_custom_plan"}),
    ),
)
