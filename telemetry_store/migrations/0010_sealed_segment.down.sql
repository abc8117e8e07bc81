-- Samples that are sealed are lost: there is no way back to hot segments.
DROP POLICY maintenance ON telemetry.segment;
CREATE POLICY maintenance ON telemetry.segment FOR SELECT TO twinmesh_maintenance USING (true);
REVOKE DELETE ON telemetry.segment, telemetry.ingest_commit FROM twinmesh_maintenance;
ALTER TABLE telemetry.ingest_commit
    DROP CONSTRAINT ingest_commit_bulk, DROP COLUMN bulk_series, DROP COLUMN bulk_starts, DROP COLUMN bulk_ends;
DROP TABLE telemetry.sealed_segment;
DROP FUNCTION telemetry.ensure_sealed_months(date, date);
