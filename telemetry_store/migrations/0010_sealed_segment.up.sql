-- Sealed segments: closed windows, merged per series and compressed (docs/adr/0014).

CREATE TABLE telemetry.sealed_segment (
    tenant_id text NOT NULL,
    series_id integer NOT NULL,
    start_time bigint NOT NULL,
    end_time bigint NOT NULL,
    samples integer NOT NULL,
    compacted boolean NOT NULL,
    order_no bigint NOT NULL,
    times bytea NOT NULL,
    "values" bytea NOT NULL,
    quality bytea,
    CONSTRAINT sealed_segment_samples CHECK (samples > 0 AND start_time <= end_time)
) PARTITION BY RANGE (start_time);
COMMENT ON TABLE telemetry.sealed_segment IS
    'Samples of one series, merged and compressed (telemetry_store/tiers/codec.py). A row never crosses a UTC day, so all '
    'samples in [a, b) are in rows with start_time >= a - a % 86400000000 AND start_time < b. Partitions are UTC months.';
COMMENT ON COLUMN telemetry.sealed_segment.end_time IS 'Time of the last sample, inclusive.';
COMMENT ON COLUMN telemetry.sealed_segment.compacted IS
    'No merge with others of its day is due: the day is closed, or there is nothing to gain.';
COMMENT ON COLUMN telemetry.sealed_segment.order_no IS
    'The greatest of its samples: every segment that is not merged into it and overlaps it is later, or wholly earlier.';
COMMENT ON COLUMN telemetry.sealed_segment.quality IS 'Null: not judged.';

ALTER TABLE telemetry.sealed_segment
    ALTER COLUMN times SET STORAGE EXTERNAL,
    ALTER COLUMN "values" SET STORAGE EXTERNAL,
    ALTER COLUMN quality SET STORAGE EXTERNAL;
CREATE INDEX sealed_segment_series_start ON telemetry.sealed_segment (series_id, start_time);
CREATE INDEX sealed_segment_pieces ON telemetry.sealed_segment (start_time) WHERE NOT compacted;

-- Makes the months that a range of days lies in; returns how many were made. A stray clock must
-- not make partitions without end: samples come here only through segment days or a backfill.
CREATE FUNCTION telemetry.ensure_sealed_months(first_day date, last_day date) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET timezone = 'UTC' SET lock_timeout = '4s'
AS $$
DECLARE
    day_us constant bigint := 86400000000;
    month date := date_trunc('month', first_day)::date;
    next_month date;
    partition text;
    made integer := 0;
BEGIN
    IF first_day < date '1990-01-01' OR last_day > (now() AT TIME ZONE 'UTC')::date + 31
        OR last_day - first_day NOT BETWEEN 0 AND 400
    THEN
        RAISE invalid_parameter_value USING MESSAGE =
            format('at most 400 days between 1990 and the next 31, not %s to %s', first_day, last_day);
    END IF;
    WHILE month <= last_day LOOP
        next_month := (month + interval '1 month')::date;
        partition := 'sealed_segment_' || to_char(month, 'YYYYMM');
        IF to_regclass(format('telemetry.%I', partition)) IS NULL THEN
            PERFORM pg_advisory_xact_lock(hashtext('telemetry.sealed_segment'));
            -- In the catalog itself: to_regclass may remember that there was none before the wait.
            IF NOT EXISTS (
                SELECT FROM pg_class WHERE relnamespace = 'telemetry'::regnamespace AND relname = partition
            ) THEN
                EXECUTE format(
                    'CREATE TABLE telemetry.%I (LIKE telemetry.sealed_segment INCLUDING STORAGE INCLUDING CONSTRAINTS)',
                    partition
                );
                EXECUTE format(
                    'ALTER TABLE telemetry.sealed_segment ATTACH PARTITION telemetry.%I FOR VALUES FROM (%s) TO (%s)',
                    partition, (month - date '1970-01-01') * day_us, (next_month - date '1970-01-01') * day_us
                );
                made := made + 1;
            END IF;
        END IF;
        month := next_month;
    END LOOP;
    RETURN made;
END $$;
REVOKE ALL ON FUNCTION telemetry.ensure_sealed_months(date, date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.ensure_sealed_months(date, date) TO twinmesh_maintenance, twinmesh_ingest;

---------------------------------------------------------------- the feed of what is loaded in bulk

ALTER TABLE telemetry.ingest_commit
    ADD COLUMN bulk_series integer[],
    ADD COLUMN bulk_starts bigint[],
    ADD COLUMN bulk_ends bigint[],
    ADD CONSTRAINT ingest_commit_bulk CHECK (
        (bulk_series IS NULL AND bulk_starts IS NULL AND bulk_ends IS NULL)
        OR (cardinality(bulk_series) = cardinality(bulk_starts) AND cardinality(bulk_series) = cardinality(bulk_ends))
    );
COMMENT ON COLUMN telemetry.ingest_commit.bulk_series IS
    'Series of which it stored sealed segments, whose order_no is its own; with them the ranges [bulk_starts, bulk_ends].';

---------------------------------------------------------------- tenancy

ALTER TABLE telemetry.sealed_segment ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
GRANT SELECT ON telemetry.sealed_segment TO twinmesh_twin_query, twinmesh_twin_feed;
CREATE POLICY tenant ON telemetry.sealed_segment FOR SELECT TO twinmesh_twin_query
    USING (tenant_id = (SELECT nullif(current_setting('twinmesh.tenant', true), '')));
CREATE POLICY feed ON telemetry.sealed_segment FOR SELECT TO twinmesh_twin_feed USING (true);

GRANT DELETE ON telemetry.segment TO twinmesh_maintenance;
GRANT DELETE ON telemetry.ingest_commit TO twinmesh_maintenance;
GRANT SELECT, INSERT, DELETE ON telemetry.sealed_segment TO twinmesh_maintenance;
DROP POLICY maintenance ON telemetry.segment;
CREATE POLICY maintenance ON telemetry.segment TO twinmesh_maintenance USING (true) WITH CHECK (true);
CREATE POLICY maintenance ON telemetry.sealed_segment TO twinmesh_maintenance USING (true) WITH CHECK (true);
GRANT INSERT ON telemetry.sealed_segment TO twinmesh_ingest;
