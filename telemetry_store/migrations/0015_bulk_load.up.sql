-- A declared backfill makes room for sealed rows as well: what is loaded in bulk is written as such.

CREATE OR REPLACE FUNCTION telemetry.create_backfill(
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
    PERFORM telemetry.ensure_sealed_months(
        date '1970-01-01' + (range_start / day_us)::integer, date '1970-01-01' + ((range_end - 1) / day_us)::integer
    );
    RETURN QUERY
    INSERT INTO telemetry.backfill AS b (tenant_id, backfill_id, principal, start_time, end_time, expire_time)
    VALUES (tenant, new_id, declared_by, range_start, range_end, now() + valid_for)
    ON CONFLICT (tenant_id, start_time, end_time) DO UPDATE SET expire_time = excluded.expire_time
    RETURNING b.tenant_id, b.backfill_id, b.principal, b.start_time, b.end_time, b.expire_time;
END $$;

-- For those that were declared before.
SELECT telemetry.ensure_sealed_months(
    date '1970-01-01' + (start_time / 86400000000)::integer, date '1970-01-01' + ((end_time - 1) / 86400000000)::integer
)
FROM telemetry.backfill
WHERE expire_time > now();
