DROP TABLE telemetry.detector_state;
ALTER TABLE telemetry.series_latest DROP COLUMN quality;
ALTER TABLE telemetry.segment ALTER COLUMN quality TYPE smallint[] USING NULL;
COMMENT ON COLUMN telemetry.segment.quality IS 'One element per time; null: not assessed.';
