-- How much of the past all tenants may have declared at once: each day is a partition that reads lock.

-- Declares a backfill and makes its days; the same range answers the same backfill, valid anew. Of 6,000 days a tenant
-- may declare half of what the others have not, so that there is always room for one more, and 1,000 ranges.
CREATE OR REPLACE FUNCTION telemetry.create_backfill(
    tenant text, new_id text, declared_by text, range_start bigint, range_end bigint, valid_for interval
) RETURNS SETOF telemetry.backfill
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET timezone = 'UTC' SET lock_timeout = '4s'
AS $$
DECLARE
    day_us constant bigint := 86400000000;
    earliest constant bigint := 631152000000000; -- 1990-01-01
    most_days constant integer := 6000;
    most_ranges constant integer := 1000;
    range_days int4multirange;
    own int4multirange;
    others int4multirange;
    ranges integer;
    most integer;
BEGIN
    IF range_start < earliest OR range_start >= range_end OR range_end - range_start > 400 * day_us
        OR range_end > extract(epoch FROM now()) * 1000000 + day_us
    THEN
        RAISE invalid_parameter_value USING MESSAGE =
            format('a backfill covers at most 400 days between 1990 and now, not %s to %s', range_start, range_end);
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('telemetry.segment'));
    IF NOT EXISTS (
        SELECT FROM telemetry.backfill
        WHERE tenant_id = tenant AND start_time = range_start AND end_time = range_end AND expire_time > now()
    ) THEN
        range_days := int4multirange(
            int4range((range_start / day_us)::integer, ((range_end - 1) / day_us)::integer, '[]'));
        SELECT
            coalesce(range_agg(days) FILTER (WHERE tenant_id = tenant), '{}'),
            coalesce(range_agg(days) FILTER (WHERE tenant_id <> tenant), '{}'),
            count(*) FILTER (WHERE tenant_id = tenant)
        INTO own, others, ranges
        FROM telemetry.backfill,
            int4range((start_time / day_us)::integer, ((end_time - 1) / day_us)::integer, '[]') AS days
        WHERE expire_time > now();
        -- Days that others have declared as well count for both: the answer must not tell which they are.
        most := (most_days - telemetry.days_of(others) + 1) / 2;
        IF telemetry.days_of(own + range_days) > most THEN
            RAISE configuration_limit_exceeded
                USING MESSAGE = 'backfill_days', DETAIL = format('%s %s', most, telemetry.days_of(own));
        ELSIF ranges >= most_ranges THEN
            RAISE configuration_limit_exceeded
                USING MESSAGE = 'backfills', DETAIL = format('%s %s', most_ranges, ranges);
        END IF;
    END IF;
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

CREATE FUNCTION telemetry.days_of(days int4multirange) RETURNS integer
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog
RETURN (SELECT coalesce(sum(upper(part) - lower(part)), 0)::integer FROM unnest(days) AS part);
REVOKE ALL ON FUNCTION telemetry.days_of(int4multirange) FROM PUBLIC;

-- As before, but 200 are dropped at a time, and of the others no partition is locked for longer than it is looked at:
-- locks last until the transaction ends, so that a look at thousands of days would need more than there are.
CREATE OR REPLACE FUNCTION telemetry.drop_segment_days(days_back integer, long_empty date[])
    RETURNS TABLE (day date, dropped boolean)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET timezone = 'UTC' SET lock_timeout = '500ms'
AS $$
DECLARE
    day_us constant bigint := 86400000000;
    partition text;
    start_us bigint;
    one integer;
    is_busy boolean := false;
    dropped_days integer := 0;
BEGIN
    IF days_back NOT BETWEEN 0 AND 400 THEN
        RAISE invalid_parameter_value USING MESSAGE = format('at most 400 days back, not %s', days_back);
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('telemetry.segment'));
    FOR partition IN
        SELECT child.relname
        FROM pg_inherits
        JOIN pg_class AS child ON child.oid = pg_inherits.inhrelid
        WHERE pg_inherits.inhparent = 'telemetry.segment'::regclass
          AND to_date(right(child.relname, 8), 'YYYYMMDD') < (now() AT TIME ZONE 'UTC')::date - days_back
        ORDER BY child.relname
    LOOP
        day := to_date(right(partition, 8), 'YYYYMMDD');
        dropped := false;
        start_us := (day - date '1970-01-01') * day_us;
        -- A batch may be under way that found its backfill just before it expired.
        CONTINUE WHEN EXISTS (
            SELECT FROM telemetry.backfill
            WHERE start_time < start_us + day_us AND end_time > start_us AND expire_time > now() - interval '1 hour'
        );
        BEGIN
            -- Along the index: what was deleted is still in the table, and not in there for long.
            EXECUTE format('SELECT 1 FROM telemetry.%I ORDER BY series_id LIMIT 1', partition) INTO one;
            RAISE no_data_found;
        EXCEPTION WHEN no_data_found THEN
            NULL; -- It was raised above, so that the locks of the look are given back.
        END;
        CONTINUE WHEN one IS NOT NULL;
        IF NOT is_busy AND dropped_days < 200 AND day = ANY (long_empty) THEN
            BEGIN
                -- The parent first, as its readers and writers do.
                LOCK TABLE ONLY telemetry.segment IN ACCESS EXCLUSIVE MODE;
                EXECUTE format('LOCK TABLE telemetry.%I IN ACCESS EXCLUSIVE MODE', partition);
                EXECUTE format('SELECT 1 FROM telemetry.%I ORDER BY series_id LIMIT 1', partition) INTO one;
                CONTINUE WHEN one IS NOT NULL;
                EXECUTE format('DROP TABLE telemetry.%I', partition);
                dropped := true;
                dropped_days := dropped_days + 1;
            EXCEPTION WHEN lock_not_available THEN
                -- Somebody reads for long, and everybody else would wait behind us: another time.
                is_busy := true;
            END;
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;
