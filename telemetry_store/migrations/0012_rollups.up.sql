-- Rollups: what the samples of each UTC minute, hour and day come to (docs/adr/0014). Plain rows, for people too, so
-- their times are timestamptz.

CREATE TABLE telemetry.rollup_minute (
    tenant_id text NOT NULL,
    series_id integer NOT NULL,
    start_time timestamptz NOT NULL,
    count bigint NOT NULL,
    min double precision NOT NULL,
    max double precision NOT NULL,
    sum double precision NOT NULL,
    mean double precision NOT NULL,
    m2 double precision NOT NULL,
    first double precision NOT NULL,
    last double precision NOT NULL,
    first_time timestamptz NOT NULL,
    last_time timestamptz NOT NULL,
    anomalies bigint NOT NULL,
    quality_sum bigint NOT NULL,
    quality_count bigint NOT NULL,
    stddev double precision GENERATED ALWAYS AS (sqrt(m2 / count)) VIRTUAL,
    quality double precision GENERATED ALWAYS AS (quality_sum::double precision / nullif(quality_count, 0)) VIRTUAL,
    CONSTRAINT rollup_minute_pkey PRIMARY KEY (tenant_id, series_id, start_time)
) PARTITION BY RANGE (start_time);
COMMENT ON TABLE telemetry.rollup_minute IS
    'Samples of one series of kind double, int or bool (0 or 1) in the minute that starts at start_time. Partitions are UTC days.';
COMMENT ON COLUMN telemetry.rollup_minute.m2 IS 'Sum of (value - mean)².';
COMMENT ON COLUMN telemetry.rollup_minute.quality_sum IS 'Scores in percent of the samples that were judged, quality_count of them.';
COMMENT ON COLUMN telemetry.rollup_minute.stddev IS 'Of the population.';
COMMENT ON COLUMN telemetry.rollup_minute.quality IS 'Mean score in percent; null: no sample was judged.';

-- The running bucket is updated in place, over and over.
CREATE TABLE telemetry.rollup_hour (
    LIKE telemetry.rollup_minute INCLUDING GENERATED INCLUDING COMMENTS,
    CONSTRAINT rollup_hour_pkey PRIMARY KEY (tenant_id, series_id, start_time)
) WITH (fillfactor = 80);
COMMENT ON TABLE telemetry.rollup_hour IS 'As rollup_minute, of UTC hours.';
CREATE TABLE telemetry.rollup_day (
    LIKE telemetry.rollup_minute INCLUDING GENERATED INCLUDING COMMENTS,
    CONSTRAINT rollup_day_pkey PRIMARY KEY (tenant_id, series_id, start_time)
) WITH (fillfactor = 80);
COMMENT ON TABLE telemetry.rollup_day IS 'As rollup_minute, of UTC days.';

CREATE TABLE telemetry.rollup_horizon (
    tenant_id text NOT NULL,
    width bigint NOT NULL,
    start_time bigint NOT NULL,
    CONSTRAINT rollup_horizon_pkey PRIMARY KEY (tenant_id, width),
    CONSTRAINT rollup_horizon_width CHECK (width IN (60000000, 3600000000, 86400000000)),
    CONSTRAINT rollup_horizon_day CHECK (start_time % 86400000000 = 0)
);
COMMENT ON TABLE telemetry.rollup_horizon IS
    'Buckets of a width in microseconds that start before start_time are not stored: they are computed from samples when '
    'asked for. It only ever rises. Tenant '''': of all that have no row of their own. No row: all are stored.';

CREATE TABLE telemetry.rollup_stale (
    tenant_id text NOT NULL,
    series_id integer NOT NULL,
    start_time bigint NOT NULL,
    end_time bigint NOT NULL,
    retry_at timestamptz,
    CONSTRAINT rollup_stale_pkey PRIMARY KEY (tenant_id, series_id, start_time, end_time),
    CONSTRAINT rollup_stale_range CHECK (start_time < end_time)
);
COMMENT ON TABLE telemetry.rollup_stale IS
    'Event times in [start_time, end_time) whose buckets are to be computed anew from samples; until then readers do so.';
COMMENT ON COLUMN telemetry.rollup_stale.retry_at IS
    'Not before: an archived object of the day is missing or damaged. Null: nothing is known against it.';
CREATE INDEX rollup_stale_retry ON telemetry.rollup_stale (retry_at) WHERE retry_at IS NOT NULL;

-- Makes the days that minutes go into, those that there are not yet; returns how many.
CREATE FUNCTION telemetry.ensure_rollup_days(days date[]) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET timezone = 'UTC' SET lock_timeout = '4s'
AS $$
DECLARE
    day date;
    partition text;
    made integer := 0;
BEGIN
    FOREACH day IN ARRAY days LOOP
        partition := 'rollup_minute_' || to_char(day, 'YYYYMMDD');
        CONTINUE WHEN to_regclass(format('telemetry.%I', partition)) IS NOT NULL;
        IF day < (now() AT TIME ZONE 'UTC')::date - 400 OR day > (now() AT TIME ZONE 'UTC')::date + 31 THEN
            RAISE invalid_parameter_value USING MESSAGE = format('at most 400 days back and 31 ahead, not %s', day);
        END IF;
        PERFORM pg_advisory_xact_lock(hashtext('telemetry.rollup_minute'));
        IF to_regclass(format('telemetry.%I', partition)) IS NULL THEN
            EXECUTE format(
                'CREATE TABLE telemetry.%I (LIKE telemetry.rollup_minute INCLUDING GENERATED) WITH (fillfactor = 80)',
                partition
            );
            EXECUTE format(
                'ALTER TABLE telemetry.rollup_minute ATTACH PARTITION telemetry.%I FOR VALUES FROM (%L) TO (%L)',
                partition, day, day + 1
            );
            made := made + 1;
        END IF;
    END LOOP;
    RETURN made;
END $$;
REVOKE ALL ON FUNCTION telemetry.ensure_rollup_days(date[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.ensure_rollup_days(date[]) TO twinmesh_maintenance;

-- Drops the days of which no tenant's minutes are stored any more; returns how many. One day more stays, for
-- those who read by a horizon of before.
CREATE FUNCTION telemetry.drop_rollup_days() RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET timezone = 'UTC' SET lock_timeout = '500ms'
AS $$
DECLARE
    horizon date;
    partition text;
    dropped integer := 0;
BEGIN
    SELECT date '1970-01-01' + (min(start_time) / 86400000000)::integer - 1 INTO horizon
    FROM telemetry.rollup_horizon
    WHERE width = 60000000
    HAVING bool_or(tenant_id = '');
    PERFORM pg_advisory_xact_lock(hashtext('telemetry.rollup_minute'));
    FOR partition IN
        SELECT child.relname
        FROM pg_inherits
        JOIN pg_class AS child ON child.oid = pg_inherits.inhrelid
        WHERE pg_inherits.inhparent = 'telemetry.rollup_minute'::regclass
          AND to_date(right(child.relname, 8), 'YYYYMMDD') < horizon
        ORDER BY child.relname
    LOOP
        BEGIN
            -- The parent first, as its readers and writers do.
            LOCK TABLE ONLY telemetry.rollup_minute IN ACCESS EXCLUSIVE MODE;
            EXECUTE format('DROP TABLE telemetry.%I', partition);
        EXCEPTION WHEN lock_not_available THEN
            -- Somebody reads for long, and everybody else would wait behind us: another time.
            RETURN dropped;
        END;
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END $$;
REVOKE ALL ON FUNCTION telemetry.drop_rollup_days() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.drop_rollup_days() TO twinmesh_maintenance;

-- Summarizes what was written since the last time, so that whoever looks for commits does not read all of it;
-- by itself that happens once a minute. Returns how many ranges of pages.
CREATE FUNCTION telemetry.summarize_segment_days() RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET lock_timeout = '500ms'
AS $$
DECLARE
    index regclass;
    summarized integer := 0;
BEGIN
    FOR index IN
        SELECT inhrelid
        FROM pg_inherits
        WHERE inhparent = 'telemetry.segment_order'::regclass
    LOOP
        BEGIN
            summarized := summarized + brin_summarize_new_values(index);
        EXCEPTION WHEN lock_not_available OR undefined_table THEN
            -- Vacuum is at it, or the day has just been dropped.
            CONTINUE;
        END;
    END LOOP;
    RETURN summarized;
END $$;
REVOKE ALL ON FUNCTION telemetry.summarize_segment_days() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.summarize_segment_days() TO twinmesh_maintenance;

---------------------------------------------------------------- tenancy

ALTER TABLE telemetry.rollup_minute ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE telemetry.rollup_hour ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE telemetry.rollup_day ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE telemetry.rollup_horizon ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE telemetry.rollup_stale ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

GRANT SELECT
    ON telemetry.rollup_minute, telemetry.rollup_hour, telemetry.rollup_day, telemetry.rollup_horizon,
       telemetry.rollup_stale
    TO twinmesh_twin_query;
-- How far rollups are: a reader computes what they lack.
GRANT SELECT ON telemetry.feed_consumer TO twinmesh_twin_query;
GRANT SELECT (instance, last_commit_no, floor_commit_no) ON telemetry.ingest_instance TO twinmesh_twin_query;
GRANT SELECT (instance, commit_no, order_no, days, bulk_series, bulk_starts, bulk_ends)
    ON telemetry.ingest_commit TO twinmesh_twin_query;
CREATE POLICY tenant ON telemetry.rollup_minute FOR SELECT TO twinmesh_twin_query
    USING (tenant_id = (SELECT nullif(current_setting('twinmesh.tenant', true), '')));
CREATE POLICY tenant ON telemetry.rollup_hour FOR SELECT TO twinmesh_twin_query
    USING (tenant_id = (SELECT nullif(current_setting('twinmesh.tenant', true), '')));
CREATE POLICY tenant ON telemetry.rollup_day FOR SELECT TO twinmesh_twin_query
    USING (tenant_id = (SELECT nullif(current_setting('twinmesh.tenant', true), '')));
-- The row of all tenants beside the own one.
CREATE POLICY tenant ON telemetry.rollup_horizon FOR SELECT TO twinmesh_twin_query
    USING (tenant_id = '' OR tenant_id = (SELECT nullif(current_setting('twinmesh.tenant', true), '')));
CREATE POLICY tenant ON telemetry.rollup_stale FOR SELECT TO twinmesh_twin_query
    USING (tenant_id = (SELECT nullif(current_setting('twinmesh.tenant', true), '')));

GRANT SELECT, INSERT, UPDATE, DELETE
    ON telemetry.rollup_minute, telemetry.rollup_hour, telemetry.rollup_day, telemetry.rollup_horizon,
       telemetry.rollup_stale
    TO twinmesh_maintenance;
CREATE POLICY maintenance ON telemetry.rollup_minute TO twinmesh_maintenance USING (true) WITH CHECK (true);
CREATE POLICY maintenance ON telemetry.rollup_hour TO twinmesh_maintenance USING (true) WITH CHECK (true);
CREATE POLICY maintenance ON telemetry.rollup_day TO twinmesh_maintenance USING (true) WITH CHECK (true);
CREATE POLICY maintenance ON telemetry.rollup_horizon TO twinmesh_maintenance USING (true) WITH CHECK (true);
CREATE POLICY maintenance ON telemetry.rollup_stale TO twinmesh_maintenance USING (true) WITH CHECK (true);
