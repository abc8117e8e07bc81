DROP TABLE telemetry.event;

UPDATE telemetry.segment
SET strings = ARRAY (
    SELECT strings[coalesce(codes[place], 1)] FROM generate_series(1, cardinality(times)) AS place ORDER BY place
)
WHERE codes IS NOT NULL OR cardinality(strings) < cardinality(times);
ALTER TABLE telemetry.segment DROP COLUMN codes;
COMMENT ON COLUMN telemetry.segment.doubles IS
    'Of the five value columns the one of the series'' kind is set, with one element per time.';
