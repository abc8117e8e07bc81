ALTER TABLE telemetry.segment ALTER COLUMN quality TYPE integer[];
COMMENT ON COLUMN telemetry.segment.quality IS
    'How good each sample is (telemetry_store/quality.py); one element when all are alike; null: not judged.';

ALTER TABLE telemetry.series_latest ADD COLUMN quality integer;
COMMENT ON COLUMN telemetry.series_latest.quality IS 'Of the sample, as in telemetry.segment; null: not judged.';

CREATE TABLE telemetry.detector_state (
    tenant_id text NOT NULL,
    detector text NOT NULL,
    subject text NOT NULL,
    time bigint NOT NULL,
    state bytea NOT NULL,
    saved_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT detector_state_pkey PRIMARY KEY (tenant_id, detector, subject)
) WITH (fillfactor = 70);
COMMENT ON TABLE telemetry.detector_state IS
    'What is remembered of a series or device to judge its next samples; saved now and then, so whoever takes over '
    'need not begin anew. A loss costs nothing but the time to learn it again.';
COMMENT ON COLUMN telemetry.detector_state.subject IS 'Id of the series or device, as detector says.';
COMMENT ON COLUMN telemetry.detector_state.time IS 'Of the latest sample in it: a newer state replaces it.';
ALTER TABLE telemetry.detector_state ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
GRANT SELECT, INSERT, UPDATE ON telemetry.detector_state TO twinmesh_ingest;
