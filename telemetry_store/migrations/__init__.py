"""The telemetry store's schema and the roles that work on it."""

from meshkit.migrate import Owner, Role

OWNER = Owner(
    "telemetry",
    __name__,
    roles=(
        # An ingest process that hangs in a transaction holds cursors and its instance's
        # row; the store waits out these times where it must know that one has ended.
        Role(
            "twinmesh_ingest",
            bypass_rls=True,
            settings={"idle_in_transaction_session_timeout": "5s", "transaction_timeout": "30s"},
        ),
        # Readers plan with the actual times, so that only these days' partitions are opened.
        Role("twinmesh_twin_feed", settings={"plan_cache_mode": "force_custom_plan"}),
        Role("twinmesh_twin_query", settings={"plan_cache_mode": "force_custom_plan"}),
        Role("twinmesh_maintenance", settings={"plan_cache_mode": "force_custom_plan"}),
        # People who ask in SQL (telemetry.sql_user), one role each.
        Role("twinmesh_sql", login=False),
    ),
)
