-- Samples that are archived are found no more; the objects stay.
DROP TABLE telemetry.restore;
DROP TABLE telemetry.archive_object;
DROP TABLE telemetry.archive;
DROP INDEX telemetry.sealed_segment_tenant_start;
ALTER TABLE telemetry.sealed_segment DROP COLUMN sealed_at;
