-- The archive: which objects hold what is no longer sealed, and what is to be brought back (docs/adr/0014).

ALTER TABLE telemetry.sealed_segment ADD COLUMN sealed_at timestamptz NOT NULL DEFAULT now();
COMMENT ON COLUMN telemetry.sealed_segment.sealed_at IS
    'When it was last sealed: ages are counted from the later of this and the time of its samples.';
-- A tenant's days, as archiving takes them.
CREATE INDEX sealed_segment_tenant_start ON telemetry.sealed_segment (tenant_id, start_time);

-- A database's objects lie below a folder of their own, so that two that share a store do not
-- take each other's objects for orphans.
CREATE TABLE telemetry.archive (
    one boolean NOT NULL DEFAULT true CONSTRAINT archive_pkey PRIMARY KEY CONSTRAINT archive_one CHECK (one),
    archive_id uuid NOT NULL DEFAULT gen_random_uuid()
);
COMMENT ON TABLE telemetry.archive IS 'One row: the folder of this database''s objects below TWINMESH_ARCHIVE_URL.';
INSERT INTO telemetry.archive DEFAULT VALUES;

CREATE TABLE telemetry.archive_object (
    tenant_id text NOT NULL,
    day date NOT NULL,
    path text NOT NULL,
    generation integer NOT NULL,
    first_series integer NOT NULL,
    last_series integer NOT NULL,
    first_time bigint NOT NULL,
    last_time bigint NOT NULL,
    series integer NOT NULL,
    samples bigint NOT NULL,
    bytes bigint NOT NULL,
    footer_bytes integer NOT NULL,
    footer_crc bigint NOT NULL,
    checksum bytea NOT NULL,
    order_no bigint NOT NULL,
    sealed_at timestamptz NOT NULL,
    verified_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    retired_at timestamptz,
    CONSTRAINT archive_object_pkey PRIMARY KEY (tenant_id, day, path),
    CONSTRAINT archive_object_samples CHECK (samples > 0 AND series > 0 AND first_series <= last_series)
);
COMMENT ON TABLE telemetry.archive_object IS
    'The archive''s manifest, and its only truth: what a row names while it is not retired is where samples lie. '
    'Objects are immutable; those of one (tenant, day) are of one generation.';
COMMENT ON COLUMN telemetry.archive_object.path IS 'Below TWINMESH_ARCHIVE_URL.';
COMMENT ON COLUMN telemetry.archive_object.footer_crc IS 'CRC-32 of the last footer_bytes, by which all else is found.';
COMMENT ON COLUMN telemetry.archive_object.checksum IS
    'BLAKE2b-128 of all samples as columns (telemetry_store/tiers/archive_file.py).';
COMMENT ON COLUMN telemetry.archive_object.order_no IS 'The greatest of its samples; each has its own in the object.';
COMMENT ON COLUMN telemetry.archive_object.sealed_at IS 'The newest of the sealed rows that went into it.';
COMMENT ON COLUMN telemetry.archive_object.retired_at IS
    'Since when nobody begins to read it: replaced, restored or expired. The object is deleted after a grace, then the row.';
CREATE INDEX archive_object_retired ON telemetry.archive_object (retired_at) WHERE retired_at IS NOT NULL;

---------------------------------------------------------------- tenancy

ALTER TABLE telemetry.archive_object ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
GRANT SELECT ON telemetry.archive_object TO twinmesh_twin_query;
CREATE POLICY tenant ON telemetry.archive_object FOR SELECT TO twinmesh_twin_query
    USING (tenant_id = (SELECT nullif(current_setting('twinmesh.tenant', true), '')));

GRANT SELECT ON telemetry.archive TO twinmesh_maintenance;
GRANT SELECT, INSERT, DELETE, UPDATE (retired_at) ON telemetry.archive_object TO twinmesh_maintenance;
CREATE POLICY maintenance ON telemetry.archive_object TO twinmesh_maintenance USING (true) WITH CHECK (true);

---------------------------------------------------------------- what is to be brought back

CREATE TABLE telemetry.restore (
    tenant_id text NOT NULL,
    restore_id text NOT NULL,
    principal text NOT NULL,
    first_day date NOT NULL,
    last_day date NOT NULL,
    kept_until timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    state smallint NOT NULL DEFAULT 1,
    days integer,
    days_done integer NOT NULL DEFAULT 0,
    samples bigint NOT NULL DEFAULT 0,
    error text,
    finished_at timestamptz,
    CONSTRAINT restore_pkey PRIMARY KEY (tenant_id, restore_id),
    CONSTRAINT restore_range_key UNIQUE (tenant_id, first_day, last_day),
    CONSTRAINT restore_days CHECK (first_day <= last_day)
);
COMMENT ON TABLE telemetry.restore IS
    'Days that a tenant wants back from the archive: written by ingest_svc, worked off by maintenance. They are not '
    'archived again before kept_until, and the row goes some time after.';
COMMENT ON COLUMN telemetry.restore.state IS 'The contract''s RestoreState: 1 pending, 2 done, 3 failed.';
COMMENT ON COLUMN telemetry.restore.days IS 'Archived days in it when it began; null: it has not.';

ALTER TABLE telemetry.restore ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
GRANT SELECT, INSERT, UPDATE ON telemetry.restore TO twinmesh_ingest;
GRANT SELECT, DELETE, UPDATE (state, days, days_done, samples, error, finished_at)
    ON telemetry.restore TO twinmesh_maintenance;
CREATE POLICY maintenance ON telemetry.restore TO twinmesh_maintenance USING (true) WITH CHECK (true);
