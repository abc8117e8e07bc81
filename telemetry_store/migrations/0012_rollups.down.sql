REVOKE SELECT ON telemetry.feed_consumer FROM twinmesh_twin_query;
REVOKE SELECT (instance, last_commit_no, floor_commit_no) ON telemetry.ingest_instance FROM twinmesh_twin_query;
REVOKE SELECT (instance, commit_no, order_no, days, bulk_series, bulk_starts, bulk_ends)
    ON telemetry.ingest_commit FROM twinmesh_twin_query;
DELETE FROM telemetry.feed_consumer WHERE name = 'rollups';
DROP FUNCTION telemetry.drop_rollup_days();
DROP FUNCTION telemetry.ensure_rollup_days(date[]);
DROP TABLE telemetry.rollup_stale, telemetry.rollup_horizon, telemetry.rollup_day, telemetry.rollup_hour,
    telemetry.rollup_minute;
