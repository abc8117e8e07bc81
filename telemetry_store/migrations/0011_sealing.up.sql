-- What sealing empties: days of hot segments that hold nothing any more.

-- Looks for days of before the live window that are empty and of which no backfill is declared, and drops those of
-- them that were found so long before that nobody reads in a snapshot in which they held something. Nobody writes to
-- a day while it is looked at: declaring a backfill takes the same lock as this, and writers that come to a day after
-- it was dropped are told that it is missing, as before it was made.
CREATE FUNCTION telemetry.drop_segment_days(days_back integer, long_empty date[])
    RETURNS TABLE (day date, dropped boolean)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET timezone = 'UTC' SET lock_timeout = '500ms'
AS $$
DECLARE
    day_us constant bigint := 86400000000;
    partition text;
    start_us bigint;
    one integer;
    is_busy boolean := false;
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
        -- Along the index: what was deleted is still in the table, and not in there for long.
        EXECUTE format('SELECT 1 FROM telemetry.%I ORDER BY series_id LIMIT 1', partition) INTO one;
        CONTINUE WHEN one IS NOT NULL;
        IF NOT is_busy AND day = ANY (long_empty) THEN
            BEGIN
                -- The parent first, as its readers and writers do.
                LOCK TABLE ONLY telemetry.segment IN ACCESS EXCLUSIVE MODE;
                EXECUTE format('LOCK TABLE telemetry.%I IN ACCESS EXCLUSIVE MODE', partition);
                EXECUTE format('SELECT 1 FROM telemetry.%I ORDER BY series_id LIMIT 1', partition) INTO one;
                CONTINUE WHEN one IS NOT NULL;
                EXECUTE format('DROP TABLE telemetry.%I', partition);
                dropped := true;
            EXCEPTION WHEN lock_not_available THEN
                -- Somebody reads for long, and everybody else would wait behind us: another time.
                is_busy := true;
            END;
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;
REVOKE ALL ON FUNCTION telemetry.drop_segment_days(integer, date[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.drop_segment_days(integer, date[]) TO twinmesh_maintenance;
