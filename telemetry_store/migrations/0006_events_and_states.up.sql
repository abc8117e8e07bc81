-- States are few texts many times: a row holds each once, and which of them each sample is.

ALTER TABLE telemetry.segment ADD COLUMN codes smallint[];
ALTER TABLE telemetry.segment ALTER COLUMN codes SET STORAGE EXTERNAL;
COMMENT ON COLUMN telemetry.segment.codes IS
    'Of strings: places in strings, from 1, one element per time. Null: strings has one for all times, or one for each.';
COMMENT ON COLUMN telemetry.segment.doubles IS
    'Of the five value columns the one of the series'' kind is set, with one element per time; strings: see codes.';

-- Events: what happened on devices and assets.
--
-- One table, not one a day: there are few events beside samples, they are read newest first
-- over any span, and no clock can then make a partition.

CREATE TABLE telemetry.event (
    tenant_id text NOT NULL,
    event_id bigint GENERATED ALWAYS AS IDENTITY,
    device_id text,
    asset_id text,
    type text NOT NULL,
    severity smallint NOT NULL,
    time bigint NOT NULL,
    received_at timestamptz NOT NULL,
    message text NOT NULL,
    attributes jsonb NOT NULL,
    instance integer NOT NULL,
    commit_no bigint NOT NULL,
    order_no bigint NOT NULL,
    CONSTRAINT event_pkey PRIMARY KEY (tenant_id, event_id),
    CONSTRAINT event_source CHECK (device_id IS NOT NULL OR asset_id IS NOT NULL)
);
COMMENT ON TABLE telemetry.event IS 'What happened on devices and assets; equal events are several.';
COMMENT ON COLUMN telemetry.event.device_id IS 'Null: it happened on the asset itself.';
COMMENT ON COLUMN telemetry.event.asset_id IS
    'The asset it happened on, or that the device was on when the event was taken; null: none.';
COMMENT ON COLUMN telemetry.event.severity IS
    'The contract''s Severity: 100 debug, 200 info, 300 notice, 400 warning, 500 error, 600 critical.';
COMMENT ON COLUMN telemetry.event.time IS 'Event time, microseconds since 1970-01-01 UTC.';
COMMENT ON COLUMN telemetry.event.attributes IS
    'By name. A number with a point is a double, one without is an int, an object is a point.';
COMMENT ON COLUMN telemetry.event.commit_no IS 'With instance the feed offset, as in segments.';

CREATE INDEX event_time ON telemetry.event (tenant_id, time, event_id);
CREATE INDEX event_device_time ON telemetry.event (tenant_id, device_id, time, event_id) WHERE device_id IS NOT NULL;
CREATE INDEX event_asset_time ON telemetry.event (tenant_id, asset_id, time, event_id) WHERE asset_id IS NOT NULL;
CREATE INDEX event_order ON telemetry.event USING brin (order_no) WITH (autosummarize = on);

ALTER TABLE telemetry.event ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
GRANT INSERT ON telemetry.event TO twinmesh_ingest;
GRANT SELECT ON telemetry.event TO twinmesh_twin_query;
CREATE POLICY tenant ON telemetry.event FOR SELECT TO twinmesh_twin_query
    USING (tenant_id = (SELECT nullif(current_setting('twinmesh.tenant', true), '')));
