CREATE TABLE telemetry.placement (
    tenant_id text NOT NULL,
    device_id text NOT NULL,
    start_time bigint NOT NULL,
    asset_id text,
    latitude double precision,
    longitude double precision,
    altitude double precision,
    CONSTRAINT placement_pkey PRIMARY KEY (tenant_id, device_id, start_time)
);
COMMENT ON TABLE telemetry.placement IS
    'Which asset a device was on, and where that was: what its samples are enriched with, without a copy in each. '
    'A row holds until the next one of its device.';
COMMENT ON COLUMN telemetry.placement.start_time IS 'When ingest saw it first, microseconds since the epoch.';
COMMENT ON COLUMN telemetry.placement.asset_id IS 'Null: on none any more.';
ALTER TABLE telemetry.placement ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
GRANT SELECT, INSERT ON telemetry.placement TO twinmesh_ingest;
GRANT SELECT ON telemetry.placement TO twinmesh_twin_query;
CREATE POLICY tenant ON telemetry.placement FOR SELECT TO twinmesh_twin_query
    USING (tenant_id = (SELECT nullif(current_setting('twinmesh.tenant', true), '')));
