-- There is no way back from sealed to hot segments, so only who has sealed nothing goes back.
DO $$
BEGIN
    IF EXISTS (SELECT FROM telemetry.sealed_segment) THEN
        RAISE object_in_use USING MESSAGE = 'sealed samples would be lost: telemetry.sealed_segment has rows';
    END IF;
END $$;
DROP POLICY maintenance ON telemetry.segment;
CREATE POLICY maintenance ON telemetry.segment FOR SELECT TO twinmesh_maintenance USING (true);
REVOKE DELETE ON telemetry.segment, telemetry.ingest_commit FROM twinmesh_maintenance;
ALTER TABLE telemetry.ingest_commit
    DROP CONSTRAINT ingest_commit_bulk, DROP COLUMN bulk_series, DROP COLUMN bulk_starts, DROP COLUMN bulk_ends;
DROP TABLE telemetry.sealed_segment;
DROP FUNCTION telemetry.ensure_sealed_months(date, date);
