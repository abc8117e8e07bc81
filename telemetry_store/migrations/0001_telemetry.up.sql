-- The telemetry schema: hot segments, the numbers that order their commits, the
-- cursors and ids that make ingest exactly-once, and what readers start from.
--
-- Two clocks: event times are bigint microseconds since 1970-01-01 UTC, as on the
-- wire; the store's own bookkeeping is timestamptz.
--
-- Rights are granted on parents only: a policy on a partitioned parent does not
-- protect a partition that is read directly.

CREATE SCHEMA telemetry;
GRANT USAGE ON SCHEMA telemetry
    TO twinmesh_ingest, twinmesh_twin_feed, twinmesh_twin_query, twinmesh_maintenance;

---------------------------------------------------------------- series

CREATE TABLE telemetry.series (
    tenant_id text NOT NULL,
    series_id integer GENERATED ALWAYS AS IDENTITY,
    device_id text NOT NULL,
    metric text NOT NULL,
    kind smallint NOT NULL,
    unit text NOT NULL,
    CONSTRAINT series_pkey PRIMARY KEY (tenant_id, series_id),
    CONSTRAINT series_name_key UNIQUE (tenant_id, device_id, metric, kind),
    CONSTRAINT series_kind_known CHECK (kind BETWEEN 1 AND 5)
);
COMMENT ON TABLE telemetry.series IS
    'What is measured: one metric of one device in one kind. Ids are unique in the whole installation.';
COMMENT ON COLUMN telemetry.series.kind IS '1 double, 2 int, 3 bool, 4 string, 5 point; another kind is another series.';
COMMENT ON COLUMN telemetry.series.unit IS 'Unit of the stored values, as the device type last stated it.';

---------------------------------------------------------------- segments

CREATE TABLE telemetry.segment (
    tenant_id text NOT NULL,
    series_id integer NOT NULL,
    start_time bigint NOT NULL,
    end_time bigint NOT NULL,
    times bigint[] NOT NULL,
    doubles double precision[],
    ints bigint[],
    bools boolean[],
    strings text[],
    points double precision[],
    quality smallint[],
    instance integer NOT NULL,
    commit_no bigint NOT NULL,
    order_no bigint NOT NULL
) PARTITION BY RANGE (start_time);
COMMENT ON TABLE telemetry.segment IS
    'Hot segments: one run of one series per row, as committed. A run never crosses a UTC hour, so all samples '
    'in [a, b) are in rows with start_time >= a - a % 3600000000 AND start_time < b. Partitions are UTC days.';
COMMENT ON COLUMN telemetry.segment.start_time IS 'Time of the first sample.';
COMMENT ON COLUMN telemetry.segment.end_time IS 'Time of the last sample, inclusive.';
COMMENT ON COLUMN telemetry.segment.times IS 'Event times, strictly ascending.';
COMMENT ON COLUMN telemetry.segment.doubles IS
    'Of the five value columns the one of the series'' kind is set, with one element per time.';
COMMENT ON COLUMN telemetry.segment.points IS
    'Three elements per time: latitude, longitude, altitude; altitude NaN when absent.';
COMMENT ON COLUMN telemetry.segment.quality IS 'One element per time; null: not assessed.';
COMMENT ON COLUMN telemetry.segment.commit_no IS 'With instance the feed offset: contiguous per instance.';
COMMENT ON COLUMN telemetry.segment.order_no IS 'Decides which of two samples at one time is later; may have gaps.';

-- pglz costs more than the disk it saves here; sealing compresses.
ALTER TABLE telemetry.segment
    ALTER COLUMN times SET STORAGE EXTERNAL,
    ALTER COLUMN doubles SET STORAGE EXTERNAL,
    ALTER COLUMN ints SET STORAGE EXTERNAL,
    ALTER COLUMN bools SET STORAGE EXTERNAL,
    ALTER COLUMN points SET STORAGE EXTERNAL;
CREATE INDEX segment_series_start ON telemetry.segment (series_id, start_time);
-- On (instance, commit_no) as well it read 90 % of the table.
CREATE INDEX segment_order ON telemetry.segment USING brin (order_no) WITH (autosummarize = on);

---------------------------------------------------------------- feed: offset and order

CREATE TABLE telemetry.ingest_instance (
    instance integer GENERATED ALWAYS AS IDENTITY,
    started_at timestamptz NOT NULL DEFAULT now(),
    closed boolean NOT NULL DEFAULT false,
    closed_at timestamptz,
    last_commit_no bigint NOT NULL DEFAULT 0,
    floor_commit_no bigint NOT NULL DEFAULT 0,
    CONSTRAINT ingest_instance_pkey PRIMARY KEY (instance),
    CONSTRAINT ingest_instance_floor CHECK (floor_commit_no BETWEEN 0 AND last_commit_no)
) WITH (fillfactor = 50);
COMMENT ON TABLE telemetry.ingest_instance IS
    'Each start of an ingest process, which holds a session advisory lock while it lives. A closed one commits no more.';
COMMENT ON COLUMN telemetry.ingest_instance.last_commit_no IS
    'Raised by the committing transaction itself, so an abort leaves no gap.';
COMMENT ON COLUMN telemetry.ingest_instance.floor_commit_no IS
    'Commits up to here may be sealed: their segments need not be found by commit any more.';

CREATE TABLE telemetry.ingest_commit (
    instance integer NOT NULL,
    commit_no bigint NOT NULL,
    order_no bigint NOT NULL,
    committed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    days date[] NOT NULL,
    traceparent text,
    CONSTRAINT ingest_commit_pkey PRIMARY KEY (instance, commit_no)
);
COMMENT ON TABLE telemetry.ingest_commit IS 'One row per group commit; its segments, if any, carry its numbers.';
COMMENT ON COLUMN telemetry.ingest_commit.days IS 'UTC days whose partitions it wrote, ascending.';
COMMENT ON COLUMN telemetry.ingest_commit.traceparent IS
    'W3C trace context of the commit''s span, when it is recorded: readers go on in the same trace.';

-- Never cached per session: a later transaction of one writer must get a later number.
CREATE SEQUENCE telemetry.commit_order AS bigint CACHE 1;

CREATE TABLE telemetry.feed_consumer (
    name text NOT NULL,
    frontier jsonb NOT NULL DEFAULT '{}',
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT feed_consumer_pkey PRIMARY KEY (name)
);
COMMENT ON TABLE telemetry.feed_consumer IS
    'Who reads every commit, and how far it is; sealing raises no floor above a frontier.';
COMMENT ON COLUMN telemetry.feed_consumer.frontier IS
    'Last commit_no taken by instance, {"17": 4711}; an instance not named: none.';

---------------------------------------------------------------- exactly once

CREATE TABLE telemetry.writer_cursor (
    tenant_id text NOT NULL,
    writer_id text NOT NULL,
    principal text NOT NULL,
    epoch bigint NOT NULL DEFAULT 0,
    last_sequence bigint NOT NULL DEFAULT 0,
    CONSTRAINT writer_cursor_pkey PRIMARY KEY (tenant_id, writer_id)
) WITH (fillfactor = 50);
COMMENT ON COLUMN telemetry.writer_cursor.principal IS 'Who used the writer first; nobody else may.';
COMMENT ON COLUMN telemetry.writer_cursor.epoch IS 'Raised at every Open of a stream; older streams are fenced.';

CREATE TABLE telemetry.writer_outcome (
    tenant_id text NOT NULL,
    writer_id text NOT NULL,
    slot smallint NOT NULL,
    sequence bigint NOT NULL,
    digest bytea NOT NULL,
    outcome bytea NOT NULL,
    CONSTRAINT writer_outcome_pkey PRIMARY KEY (tenant_id, writer_id, slot),
    CONSTRAINT writer_outcome_slot CHECK (slot = sequence % 256)
) WITH (fillfactor = 50);
COMMENT ON TABLE telemetry.writer_outcome IS
    'What was answered to the last 256 batches of each writer: a ring, overwritten in place.';

CREATE TABLE telemetry.request_id (
    tenant_id text NOT NULL,
    principal text NOT NULL,
    request_id text NOT NULL,
    window_start timestamptz NOT NULL,
    digest bytea NOT NULL,
    outcome bytea NOT NULL,
    CONSTRAINT request_id_pkey PRIMARY KEY (tenant_id, principal, request_id, window_start)
) PARTITION BY RANGE (window_start);
COMMENT ON TABLE telemetry.request_id IS
    'What was answered to requests that carried an id, kept one hour. Partitions are windows of 15 minutes.';

CREATE TABLE telemetry.backfill (
    tenant_id text NOT NULL,
    backfill_id text NOT NULL,
    principal text NOT NULL,
    start_time bigint NOT NULL,
    end_time bigint NOT NULL,
    expire_time timestamptz NOT NULL,
    CONSTRAINT backfill_pkey PRIMARY KEY (tenant_id, backfill_id),
    CONSTRAINT backfill_range_key UNIQUE (tenant_id, start_time, end_time),
    CONSTRAINT backfill_range CHECK (start_time < end_time)
);
COMMENT ON TABLE telemetry.backfill IS 'Declared loads of old recordings; event times in [start_time, end_time).';
COMMENT ON COLUMN telemetry.backfill.principal IS 'Who declared it first.';

CREATE TABLE telemetry.dead_letter (
    tenant_id text NOT NULL,
    dead_letter_id bigint GENERATED ALWAYS AS IDENTITY,
    device_id text,
    principal text NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    reason text NOT NULL,
    message text NOT NULL,
    payload bytea NOT NULL,
    trace_id text,
    CONSTRAINT dead_letter_pkey PRIMARY KEY (tenant_id, dead_letter_id)
);
COMMENT ON TABLE telemetry.dead_letter IS 'Messages that could not be processed, as received, and why.';
COMMENT ON COLUMN telemetry.dead_letter.reason IS 'Name of the ErrorReason, without its prefix.';

---------------------------------------------------------------- where readers start

CREATE TABLE telemetry.series_latest (
    tenant_id text NOT NULL,
    series_id integer NOT NULL,
    time bigint NOT NULL,
    double_value double precision,
    int_value bigint,
    bool_value boolean,
    string_value text,
    point_value double precision[],
    order_no bigint NOT NULL,
    CONSTRAINT series_latest_pkey PRIMARY KEY (tenant_id, series_id)
) WITH (fillfactor = 70);
COMMENT ON TABLE telemetry.series_latest IS
    'Checkpoint of every series'' latest sample, written with its frontier in feed_consumer.';
COMMENT ON COLUMN telemetry.series_latest.point_value IS 'Latitude, longitude, altitude (NaN when absent).';

---------------------------------------------------------------- partitions

-- Attaching, unlike CREATE … PARTITION OF, lets readers and writers go on.
CREATE FUNCTION telemetry.make_segment_day(day date) RETURNS boolean
    LANGUAGE plpgsql SET search_path = pg_catalog
AS $$
DECLARE
    partition text := 'segment_' || to_char(day, 'YYYYMMDD');
    day_us constant bigint := 86400000000;
    start_us bigint := (day - date '1970-01-01') * day_us;
BEGIN
    IF to_regclass(format('telemetry.%I', partition)) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format(
        'CREATE TABLE telemetry.%I (LIKE telemetry.segment INCLUDING STORAGE) WITH (toast_tuple_target = 8160)',
        partition
    );
    EXECUTE format(
        'ALTER TABLE telemetry.segment ATTACH PARTITION telemetry.%I FOR VALUES FROM (%s) TO (%s)',
        partition, start_us, start_us + day_us
    );
    RETURN true;
END $$;
REVOKE ALL ON FUNCTION telemetry.make_segment_day(date) FROM PUBLIC;

-- Makes the days of the live window. A stray clock must not make partitions without
-- end, so the range is bounded; returns how many were made.
CREATE FUNCTION telemetry.ensure_segment_days(days_back integer, days_ahead integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET lock_timeout = '4s'
AS $$
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
    made integer := 0;
BEGIN
    IF days_back NOT BETWEEN 0 AND 400 OR days_ahead NOT BETWEEN 0 AND 31 THEN
        RAISE invalid_parameter_value USING MESSAGE =
            format('at most 400 days back and 31 ahead, not %s and %s', days_back, days_ahead);
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('telemetry.segment'));
    FOR day_no IN -days_back .. days_ahead LOOP
        made := made + telemetry.make_segment_day(today + day_no)::integer;
    END LOOP;
    RETURN made;
END $$;
REVOKE ALL ON FUNCTION telemetry.ensure_segment_days(integer, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.ensure_segment_days(integer, integer) TO twinmesh_maintenance;

-- Makes the request ids' windows from the present one on; returns how many were made.
CREATE FUNCTION telemetry.ensure_request_windows(ahead interval) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET timezone = 'UTC' SET lock_timeout = '4s'
AS $$
DECLARE
    width constant interval := '15 minutes';
    -- The one before: for 60 s after a boundary ids go into both.
    window_start timestamptz := date_bin(width, now(), timestamptz 'epoch') - width;
    partition text;
    made integer := 0;
BEGIN
    IF ahead NOT BETWEEN interval '0' AND interval '1 day' THEN
        RAISE invalid_parameter_value USING MESSAGE = format('at most 1 day ahead, not %s', ahead);
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('telemetry.request_id'));
    WHILE window_start <= now() + ahead LOOP
        partition := 'request_id_' || to_char(window_start, 'YYYYMMDD_HH24MI');
        IF to_regclass(format('telemetry.%I', partition)) IS NULL THEN
            EXECUTE format('CREATE TABLE telemetry.%I (LIKE telemetry.request_id)', partition);
            EXECUTE format(
                'ALTER TABLE telemetry.request_id ATTACH PARTITION telemetry.%I FOR VALUES FROM (%L) TO (%L)',
                partition, window_start, window_start + width
            );
            made := made + 1;
        END IF;
        window_start := window_start + width;
    END LOOP;
    RETURN made;
END $$;
REVOKE ALL ON FUNCTION telemetry.ensure_request_windows(interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.ensure_request_windows(interval) TO twinmesh_maintenance;

-- Drops the windows that ended longer ago than ids are kept; returns how many.
CREATE FUNCTION telemetry.drop_request_windows(keep interval) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET timezone = 'UTC' SET lock_timeout = '4s'
AS $$
DECLARE
    width constant interval := '15 minutes';
    partition regclass;
    dropped integer := 0;
BEGIN
    IF keep < interval '1 hour' THEN
        RAISE invalid_parameter_value USING MESSAGE = format('ids are kept 1 hour at least, not %s', keep);
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('telemetry.request_id'));
    FOR partition IN
        SELECT child.oid
        FROM pg_inherits
        JOIN pg_class AS child ON child.oid = pg_inherits.inhrelid
        WHERE pg_inherits.inhparent = 'telemetry.request_id'::regclass
          AND child.relname < 'request_id_' || to_char(now() - keep - width, 'YYYYMMDD_HH24MI')
        ORDER BY child.relname
    LOOP
        EXECUTE format('DROP TABLE %s', partition);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END $$;
REVOKE ALL ON FUNCTION telemetry.drop_request_windows(interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.drop_request_windows(interval) TO twinmesh_maintenance;

-- Declares a backfill and makes its days; the same range answers the same backfill,
-- valid anew. The range is bounded here too: whoever may call this makes partitions.
CREATE FUNCTION telemetry.create_backfill(
    tenant text, new_id text, declared_by text, range_start bigint, range_end bigint, valid_for interval
) RETURNS SETOF telemetry.backfill
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET timezone = 'UTC' SET lock_timeout = '4s'
AS $$
DECLARE
    day_us constant bigint := 86400000000;
    earliest constant bigint := 631152000000000; -- 1990-01-01
BEGIN
    IF range_start < earliest OR range_start >= range_end OR range_end - range_start > 400 * day_us
        OR range_end > extract(epoch FROM now()) * 1000000 + day_us
    THEN
        RAISE invalid_parameter_value USING MESSAGE =
            format('a backfill covers at most 400 days between 1990 and now, not %s to %s', range_start, range_end);
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('telemetry.segment'));
    FOR day_no IN range_start / day_us .. (range_end - 1) / day_us LOOP
        PERFORM telemetry.make_segment_day(date '1970-01-01' + day_no::integer);
    END LOOP;
    RETURN QUERY
    INSERT INTO telemetry.backfill AS b (tenant_id, backfill_id, principal, start_time, end_time, expire_time)
    VALUES (tenant, new_id, declared_by, range_start, range_end, now() + valid_for)
    ON CONFLICT (tenant_id, start_time, end_time) DO UPDATE SET expire_time = excluded.expire_time
    RETURNING b.tenant_id, b.backfill_id, b.principal, b.start_time, b.end_time, b.expire_time;
END $$;
REVOKE ALL ON FUNCTION telemetry.create_backfill(text, text, text, bigint, bigint, interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.create_backfill(text, text, text, bigint, bigint, interval) TO twinmesh_ingest;

-- A fresh mesh takes samples at once; maintenance goes on from here.
SELECT telemetry.ensure_segment_days(8, 2);
SELECT telemetry.ensure_request_windows('6 hours');

---------------------------------------------------------------- tenancy

ALTER TABLE telemetry.series ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE telemetry.segment ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE telemetry.writer_cursor ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE telemetry.writer_outcome ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE telemetry.request_id ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE telemetry.backfill ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE telemetry.dead_letter ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE telemetry.series_latest ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

-- COPY is refused on tables with row-level security, so the ingest role bypasses it
-- and stamps the tenant from the verified identity.
GRANT INSERT ON telemetry.segment, telemetry.dead_letter TO twinmesh_ingest;
GRANT SELECT, INSERT, UPDATE
    ON telemetry.ingest_instance, telemetry.ingest_commit, telemetry.writer_cursor, telemetry.writer_outcome,
       telemetry.request_id, telemetry.series
    TO twinmesh_ingest;
GRANT USAGE ON SEQUENCE telemetry.commit_order TO twinmesh_ingest;
-- Made by function only, and expired by maintenance.
GRANT SELECT ON telemetry.backfill TO twinmesh_ingest;

-- Requests of a tenant's callers; without a tenant set the comparison is with null. As a
-- subquery the setting is read once per statement, not once per row.
GRANT SELECT ON telemetry.series, telemetry.segment, telemetry.series_latest TO twinmesh_twin_query;
CREATE POLICY tenant ON telemetry.series FOR SELECT TO twinmesh_twin_query
    USING (tenant_id = (SELECT nullif(current_setting('twinmesh.tenant', true), '')));
CREATE POLICY tenant ON telemetry.segment FOR SELECT TO twinmesh_twin_query
    USING (tenant_id = (SELECT nullif(current_setting('twinmesh.tenant', true), '')));
CREATE POLICY tenant ON telemetry.series_latest FOR SELECT TO twinmesh_twin_query
    USING (tenant_id = (SELECT nullif(current_setting('twinmesh.tenant', true), '')));

-- The twins of all tenants follow every commit.
GRANT SELECT
    ON telemetry.series, telemetry.segment, telemetry.series_latest, telemetry.ingest_instance,
       telemetry.ingest_commit, telemetry.feed_consumer, telemetry.commit_order
    TO twinmesh_twin_feed;
CREATE POLICY feed ON telemetry.series FOR SELECT TO twinmesh_twin_feed USING (true);
CREATE POLICY feed ON telemetry.segment FOR SELECT TO twinmesh_twin_feed USING (true);
CREATE POLICY feed ON telemetry.series_latest FOR SELECT TO twinmesh_twin_feed USING (true);

-- Maintenance works on all tenants' rows.
GRANT SELECT
    ON telemetry.series, telemetry.segment, telemetry.ingest_instance, telemetry.ingest_commit,
       telemetry.commit_order
    TO twinmesh_maintenance;
GRANT UPDATE (closed, closed_at, floor_commit_no) ON telemetry.ingest_instance TO twinmesh_maintenance;
GRANT SELECT, INSERT, UPDATE, DELETE ON telemetry.feed_consumer TO twinmesh_maintenance;
GRANT SELECT, INSERT, UPDATE ON telemetry.series_latest TO twinmesh_maintenance;
GRANT SELECT, DELETE ON telemetry.backfill TO twinmesh_maintenance;
CREATE POLICY maintenance ON telemetry.series FOR SELECT TO twinmesh_maintenance USING (true);
CREATE POLICY maintenance ON telemetry.segment FOR SELECT TO twinmesh_maintenance USING (true);
CREATE POLICY maintenance ON telemetry.series_latest TO twinmesh_maintenance USING (true) WITH CHECK (true);
CREATE POLICY maintenance ON telemetry.backfill TO twinmesh_maintenance USING (true) WITH CHECK (true);
