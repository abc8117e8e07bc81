-- How long tenants keep what, how much there is of it, and whether there is room for more (docs/storage.md).

CREATE TABLE telemetry.storage_policy (
    tenant_id text NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    update_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    archive_after interval,
    delete_after interval,
    minute_rollups_kept interval,
    hour_rollups_kept interval,
    day_rollups_kept interval,
    CONSTRAINT storage_policy_pkey PRIMARY KEY (tenant_id)
);
COMMENT ON TABLE telemetry.storage_policy IS 'How long each tenant keeps what; null: as the installation is set.';

CREATE TABLE telemetry.sample_horizon (
    tenant_id text NOT NULL,
    start_time bigint NOT NULL,
    CONSTRAINT sample_horizon_pkey PRIMARY KEY (tenant_id),
    CONSTRAINT sample_horizon_day CHECK (start_time % 86400000000 = 0)
);
COMMENT ON TABLE telemetry.sample_horizon IS
    'Retention has deleted samples of before start_time, and none from then on: before it rollups may tell of more than '
    'there is. It only ever rises. No row: nothing was ever deleted.';

---------------------------------------------------------------- how much there is

-- Measured by maintenance, one table or partition at a time, so that nobody counts samples to answer a question.
CREATE TABLE telemetry.storage_source (
    source text NOT NULL,
    tier smallint NOT NULL,
    measured_at timestamptz NOT NULL,
    changes bigint NOT NULL,
    estimated boolean NOT NULL,
    CONSTRAINT storage_source_pkey PRIMARY KEY (source)
);
COMMENT ON TABLE telemetry.storage_source IS 'Tables and partitions whose content was measured.';
COMMENT ON COLUMN telemetry.storage_source.tier IS
    'The contract''s StorageTier: 1 hot, 2 sealed, 3 archived, 4 minute, 5 hour, 6 day rollups, 7 raw messages, '
    '8 dead letters, 9 events.';
COMMENT ON COLUMN telemetry.storage_source.changes IS
    'Rows inserted and deleted since the statistics began, as they were just before: the same number, the same content.';
COMMENT ON COLUMN telemetry.storage_source.estimated IS 'From a part of its pages.';

CREATE TABLE telemetry.storage_day (
    tenant_id text NOT NULL,
    source text NOT NULL,
    tier smallint NOT NULL,
    day date NOT NULL,
    rows bigint NOT NULL,
    samples bigint NOT NULL,
    bytes bigint NOT NULL,
    CONSTRAINT storage_day_pkey PRIMARY KEY (tenant_id, source, day)
);
CREATE INDEX storage_day_source ON telemetry.storage_day (source);
COMMENT ON COLUMN telemetry.storage_day.day IS 'UTC day from which their retention counts.';
COMMENT ON COLUMN telemetry.storage_day.bytes IS
    'Their share of what the source takes on disk, with indexes and free space.';

CREATE TABLE telemetry.storage_device (
    tenant_id text NOT NULL,
    source text NOT NULL,
    device_id text NOT NULL,
    samples bigint NOT NULL,
    bytes bigint NOT NULL,
    CONSTRAINT storage_device_pkey PRIMARY KEY (tenant_id, source, device_id)
);
CREATE INDEX storage_device_source ON telemetry.storage_device (source);
COMMENT ON TABLE telemetry.storage_device IS 'The same by device, of sources whose rows are of one device each.';

---------------------------------------------------------------- whether there is room

CREATE TABLE telemetry.storage_room (
    only_row boolean NOT NULL DEFAULT true,
    refused boolean NOT NULL,
    measured text NOT NULL,
    used bigint NOT NULL,
    size bigint NOT NULL,
    reserved bigint NOT NULL,
    measured_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT storage_room_pkey PRIMARY KEY (only_row),
    CONSTRAINT storage_room_only_row CHECK (only_row)
);
COMMENT ON TABLE telemetry.storage_room IS 'Whether new data are taken; no row: nobody measures, and they are.';
COMMENT ON COLUMN telemetry.storage_room.measured IS 'What is measured: disk, or database.';
COMMENT ON COLUMN telemetry.storage_room.used IS 'Bytes in use of size, of which so many as reserved must stay free.';

---------------------------------------------------------------- sealed months that are empty

-- Months that hold nothing, ended before a day, 31 days back at least, and of which no backfill is declared.
CREATE FUNCTION telemetry.empty_sealed_months(ended_before date) RETURNS SETOF text
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET timezone = 'UTC'
AS $$
DECLARE
    day_us constant bigint := 86400000000;
    partition text;
    is_empty boolean;
BEGIN
    IF ended_before > (now() AT TIME ZONE 'UTC')::date - 31 THEN
        RAISE invalid_parameter_value USING MESSAGE =
            format('months of the last 31 days are in use, not to be looked for up to %s', ended_before);
    END IF;
    FOR partition IN
        SELECT child.relname
        FROM pg_inherits
        JOIN pg_class AS child ON child.oid = pg_inherits.inhrelid
        WHERE pg_inherits.inhparent = 'telemetry.sealed_segment'::regclass
          AND to_date(right(child.relname, 6), 'YYYYMM') + interval '1 month' <= ended_before
          -- A batch may be under way that found its backfill just before it expired.
          AND NOT EXISTS (
              SELECT FROM telemetry.backfill
              WHERE start_time < day_us
                      * ((to_date(right(child.relname, 6), 'YYYYMM') + interval '1 month')::date - date '1970-01-01')
                AND end_time > day_us * (to_date(right(child.relname, 6), 'YYYYMM') - date '1970-01-01')
                AND expire_time > now() - interval '1 hour'
          )
        ORDER BY child.relname
    LOOP
        EXECUTE format('SELECT NOT EXISTS (SELECT FROM telemetry.%I)', partition) INTO is_empty;
        IF is_empty THEN
            RETURN NEXT partition;
        END IF;
    END LOOP;
END $$;
REVOKE ALL ON FUNCTION telemetry.empty_sealed_months(date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.empty_sealed_months(date) TO twinmesh_maintenance;

-- Drops such a month; false when somebody reads or writes any, or it is not empty any more. The lock on the parent
-- waits for all of them, and who comes later waits for it: not for long.
CREATE FUNCTION telemetry.drop_sealed_month(month date) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET timezone = 'UTC' SET lock_timeout = '200ms'
AS $$
DECLARE
    partition constant text := 'sealed_segment_' || to_char(month, 'YYYYMM');
    is_empty boolean;
BEGIN
    IF (date_trunc('month', month) + interval '1 month')::date > (now() AT TIME ZONE 'UTC')::date - 31 THEN
        RAISE invalid_parameter_value USING MESSAGE = format('the month of %s is in use', month);
    END IF;
    LOCK TABLE ONLY telemetry.sealed_segment IN ACCESS EXCLUSIVE MODE;
    IF to_regclass(format('telemetry.%I', partition)) IS NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('LOCK TABLE telemetry.%I IN ACCESS EXCLUSIVE MODE', partition);
    EXECUTE format('SELECT NOT EXISTS (SELECT FROM telemetry.%I)', partition) INTO is_empty;
    IF is_empty THEN
        EXECUTE format('DROP TABLE telemetry.%I', partition);
    END IF;
    RETURN is_empty;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END $$;
REVOKE ALL ON FUNCTION telemetry.drop_sealed_month(date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.drop_sealed_month(date) TO twinmesh_maintenance;

---------------------------------------------------------------- tenancy

ALTER TABLE telemetry.storage_policy ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE telemetry.sample_horizon ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE telemetry.storage_day ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE telemetry.storage_device ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

GRANT SELECT, INSERT, UPDATE ON telemetry.storage_policy TO twinmesh_ingest;
GRANT SELECT ON telemetry.storage_room TO twinmesh_ingest;

GRANT SELECT
    ON telemetry.storage_policy, telemetry.sample_horizon, telemetry.storage_day, telemetry.storage_device,
       telemetry.storage_room
    TO twinmesh_twin_query;
GRANT SELECT (source, tier, measured_at, estimated) ON telemetry.storage_source TO twinmesh_twin_query;
CREATE POLICY tenant ON telemetry.storage_policy FOR SELECT TO twinmesh_twin_query
    USING (tenant_id = (SELECT nullif(current_setting('twinmesh.tenant', true), '')));
CREATE POLICY tenant ON telemetry.sample_horizon FOR SELECT TO twinmesh_twin_query
    USING (tenant_id = (SELECT nullif(current_setting('twinmesh.tenant', true), '')));
CREATE POLICY tenant ON telemetry.storage_day FOR SELECT TO twinmesh_twin_query
    USING (tenant_id = (SELECT nullif(current_setting('twinmesh.tenant', true), '')));
CREATE POLICY tenant ON telemetry.storage_device FOR SELECT TO twinmesh_twin_query
    USING (tenant_id = (SELECT nullif(current_setting('twinmesh.tenant', true), '')));

GRANT SELECT ON telemetry.storage_policy TO twinmesh_maintenance;
GRANT SELECT, INSERT, UPDATE ON telemetry.sample_horizon TO twinmesh_maintenance;
GRANT SELECT, INSERT, UPDATE, DELETE
    ON telemetry.storage_source, telemetry.storage_day, telemetry.storage_device, telemetry.storage_room
    TO twinmesh_maintenance;
CREATE POLICY maintenance ON telemetry.storage_policy FOR SELECT TO twinmesh_maintenance USING (true);
CREATE POLICY maintenance ON telemetry.sample_horizon TO twinmesh_maintenance USING (true) WITH CHECK (true);
CREATE POLICY maintenance ON telemetry.storage_day TO twinmesh_maintenance USING (true) WITH CHECK (true);
CREATE POLICY maintenance ON telemetry.storage_device TO twinmesh_maintenance USING (true) WITH CHECK (true);

-- Events expire with the samples. Of raw messages only the size is measured.
GRANT SELECT, DELETE ON telemetry.event TO twinmesh_maintenance;
CREATE POLICY maintenance ON telemetry.event TO twinmesh_maintenance USING (true) WITH CHECK (true);
GRANT SELECT (tenant_id, received_at, payload) ON telemetry.raw_message TO twinmesh_maintenance;
CREATE POLICY maintenance ON telemetry.raw_message FOR SELECT TO twinmesh_maintenance USING (true);
