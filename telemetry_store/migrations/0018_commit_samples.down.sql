ALTER TABLE telemetry.ingest_commit DROP COLUMN doubles, DROP COLUMN ints, DROP COLUMN bools;
