-- The raw audit trail: every message as it was received. Service roles add and read; what is too
-- old leaves through a function of the owner.

CREATE TABLE telemetry.raw_device_set (
    tenant_id text NOT NULL,
    day date NOT NULL,
    device_set_id bigint GENERATED ALWAYS AS IDENTITY,
    digest bytea NOT NULL,
    device_ids text[] NOT NULL,
    CONSTRAINT raw_device_set_pkey PRIMARY KEY (tenant_id, day, device_set_id),
    CONSTRAINT raw_device_set_digest_key UNIQUE (tenant_id, day, digest)
) PARTITION BY RANGE (day);
COMMENT ON TABLE telemetry.raw_device_set IS
    'Which devices raw messages speak of. A gateway names the same ones in each batch, so they are kept once a day.';
COMMENT ON COLUMN telemetry.raw_device_set.day IS 'UTC day of the messages'' received_at; both are dropped together.';
COMMENT ON COLUMN telemetry.raw_device_set.device_set_id IS 'Unique over all tenants and days.';
COMMENT ON COLUMN telemetry.raw_device_set.device_ids IS 'As the messages name them, ascending; they need not exist.';
CREATE INDEX raw_device_set_devices ON telemetry.raw_device_set USING gin (device_ids);

CREATE TABLE telemetry.raw_message (
    tenant_id text NOT NULL,
    received_at timestamptz NOT NULL,
    raw_message_id bigint GENERATED ALWAYS AS IDENTITY,
    format smallint NOT NULL,
    door text NOT NULL,
    principal text NOT NULL,
    writer_id text,
    sequence bigint,
    epoch bigint,
    request_id text,
    device_set_id bigint NOT NULL,
    trace_id text,
    size integer NOT NULL,
    payload bytea NOT NULL,
    CONSTRAINT raw_message_pkey PRIMARY KEY (tenant_id, received_at, raw_message_id),
    CONSTRAINT raw_message_format_known CHECK (format BETWEEN 1 AND 5)
) PARTITION BY RANGE (received_at);
COMMENT ON TABLE telemetry.raw_message IS
    'Every message that was taken or refused for good, as received, in the commit that decided about it. '
    'Partitions are UTC days.';
COMMENT ON COLUMN telemetry.raw_message.format IS
    '1 twinmesh.ingest.v1.Batch, 2 SeriesDefs, 3 IngestTelemetryRequest, 4 a device''s own payload, '
    '5 IngestEventsRequest.';
COMMENT ON COLUMN telemetry.raw_message.epoch IS
    'Of the stream: aliases of a batch are defined by the SeriesDefs of the same writer and epoch.';
COMMENT ON COLUMN telemetry.raw_message.request_id IS
    'As the caller stated it; of a device''s message the broker''s stream and its number there.';
COMMENT ON COLUMN telemetry.raw_message.size IS 'Bytes of the payload, uncompressed.';
COMMENT ON COLUMN telemetry.raw_message.payload IS 'One zstd frame.';
ALTER TABLE telemetry.raw_message ALTER COLUMN payload SET STORAGE EXTERNAL;
CREATE INDEX raw_message_device_set
    ON telemetry.raw_message (tenant_id, device_set_id, received_at, raw_message_id);
CREATE INDEX raw_message_principal ON telemetry.raw_message (tenant_id, principal, received_at, raw_message_id);
CREATE INDEX raw_message_writer
    ON telemetry.raw_message (tenant_id, writer_id, received_at, raw_message_id) WHERE writer_id IS NOT NULL;
CREATE INDEX raw_message_request
    ON telemetry.raw_message (tenant_id, request_id, received_at, raw_message_id) WHERE request_id IS NOT NULL;
CREATE INDEX raw_message_definitions ON telemetry.raw_message (tenant_id, writer_id, epoch) WHERE format = 2;

-- Makes the days that messages come on, with the one before: a clock may lag. Returns how many were made.
CREATE FUNCTION telemetry.ensure_raw_days(days_ahead integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET timezone = 'UTC' SET lock_timeout = '4s'
AS $$
DECLARE
    day date := (now() AT TIME ZONE 'UTC')::date - 1;
    last constant date := (now() AT TIME ZONE 'UTC')::date + days_ahead;
    messages text;
    sets text;
    made integer := 0;
BEGIN
    IF days_ahead NOT BETWEEN 0 AND 31 THEN
        RAISE invalid_parameter_value USING MESSAGE = format('at most 31 days ahead, not %s', days_ahead);
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('telemetry.raw_message'));
    WHILE day <= last LOOP
        messages := 'raw_message_' || to_char(day, 'YYYYMMDD');
        sets := 'raw_device_set_' || to_char(day, 'YYYYMMDD');
        IF to_regclass(format('telemetry.%I', messages)) IS NULL THEN
            EXECUTE format('CREATE TABLE telemetry.%I (LIKE telemetry.raw_device_set)', sets);
            EXECUTE format(
                'ALTER TABLE telemetry.raw_device_set ATTACH PARTITION telemetry.%I FOR VALUES FROM (%L) TO (%L)',
                sets, day, day + 1
            );
            EXECUTE format(
                'CREATE TABLE telemetry.%I (LIKE telemetry.raw_message INCLUDING STORAGE INCLUDING CONSTRAINTS)', messages
            );
            EXECUTE format(
                'ALTER TABLE telemetry.raw_message ATTACH PARTITION telemetry.%I FOR VALUES FROM (%L) TO (%L)',
                messages, day, day + 1
            );
            made := made + 1;
        END IF;
        day := day + 1;
    END LOOP;
    RETURN made;
END $$;
REVOKE ALL ON FUNCTION telemetry.ensure_raw_days(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.ensure_raw_days(integer) TO twinmesh_maintenance;

-- Drops the days of which no tenant keeps anything; returns how many. A stream lives an hour at most, so
-- two more keep the definitions of batches that came soon after midnight.
CREATE FUNCTION telemetry.drop_raw_days(longest_kept interval) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET timezone = 'UTC' SET lock_timeout = '4s'
AS $$
DECLARE
    partition text;
    dropped integer := 0;
BEGIN
    IF longest_kept < interval '1 day' THEN
        RAISE invalid_parameter_value USING MESSAGE =
            format('raw messages are kept 1 day at least, not %s', longest_kept);
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('telemetry.raw_message'));
    FOR partition IN
        SELECT child.relname
        FROM pg_inherits
        JOIN pg_class AS child ON child.oid = pg_inherits.inhrelid
        WHERE pg_inherits.inhparent = 'telemetry.raw_message'::regclass
          AND to_date(right(child.relname, 8), 'YYYYMMDD') + interval '1 day 2 hours' + longest_kept <= now()
        ORDER BY child.relname
    LOOP
        EXECUTE format('DROP TABLE telemetry.%I', partition);
        EXECUTE format('DROP TABLE telemetry.%I', replace(partition, 'raw_message', 'raw_device_set'));
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END $$;
REVOKE ALL ON FUNCTION telemetry.drop_raw_days(interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.drop_raw_days(interval) TO twinmesh_maintenance;

-- Deletes what a tenant no longer keeps, the oldest first and so many at most; returns how many.
CREATE FUNCTION telemetry.expire_raw_messages(tenant text, kept interval, most integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET lock_timeout = '4s'
AS $$
DECLARE
    deleted integer;
BEGIN
    IF kept < interval '1 day' THEN
        RAISE invalid_parameter_value USING MESSAGE = format('raw messages are kept 1 day at least, not %s', kept);
    END IF;
    DELETE FROM telemetry.raw_message AS message
    USING (
        SELECT received_at, raw_message_id
        FROM telemetry.raw_message
        WHERE tenant_id = tenant AND received_at < now() - kept
        ORDER BY received_at
        LIMIT most
    ) AS old
    WHERE message.tenant_id = tenant AND message.received_at = old.received_at
      AND message.raw_message_id = old.raw_message_id;
    GET DIAGNOSTICS deleted = ROW_COUNT;
    RETURN deleted;
END $$;
REVOKE ALL ON FUNCTION telemetry.expire_raw_messages(text, interval, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.expire_raw_messages(text, interval, integer) TO twinmesh_maintenance;

-- The tenants that have raw messages. One step through the key for each of them, not for each message.
CREATE FUNCTION telemetry.raw_tenants() RETURNS SETOF text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog
AS $$
    WITH RECURSIVE found (tenant_id) AS (
        SELECT min(tenant_id) FROM telemetry.raw_message
        UNION ALL
        SELECT (SELECT min(next.tenant_id) FROM telemetry.raw_message AS next WHERE next.tenant_id > found.tenant_id)
        FROM found
        WHERE found.tenant_id IS NOT NULL
    )
    SELECT tenant_id FROM found WHERE tenant_id IS NOT NULL
$$;
REVOKE ALL ON FUNCTION telemetry.raw_tenants() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.raw_tenants() TO twinmesh_maintenance;

SELECT telemetry.ensure_raw_days(2);

ALTER TABLE telemetry.raw_device_set ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE telemetry.raw_message ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

-- Nobody may change or delete. The ingest role bypasses policies and names the tenant in each statement.
GRANT SELECT, INSERT ON telemetry.raw_device_set, telemetry.raw_message TO twinmesh_ingest;
