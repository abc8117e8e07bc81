ALTER TABLE telemetry.segment ALTER COLUMN quality TYPE integer[];
COMMENT ON COLUMN telemetry.segment.quality IS
    'How good each sample is (telemetry_store/quality.py); one element when all are alike; null: not judged.';

ALTER TABLE telemetry.series_latest ADD COLUMN quality integer;
COMMENT ON COLUMN telemetry.series_latest.quality IS 'Of the sample, as in telemetry.segment; null: not judged.';

CREATE TABLE telemetry.detector_state (
    tenant_id text NOT NULL,
    series_id integer NOT NULL,
    state double precision[] NOT NULL,
    saved_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT detector_state_pkey PRIMARY KEY (tenant_id, series_id)
) WITH (fillfactor = 70);
COMMENT ON TABLE telemetry.detector_state IS
    'What is remembered of a series to judge its next samples; saved now and then, so whoever takes over need not '
    'begin anew. A loss costs nothing but the time to learn it again.';
ALTER TABLE telemetry.detector_state ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
GRANT SELECT, INSERT, UPDATE ON telemetry.detector_state TO twinmesh_ingest;
