DROP FUNCTION telemetry.drop_segment_days(integer, date[]);
