DROP FUNCTION telemetry.array_bytes(anyarray);
DROP FUNCTION IF EXISTS telemetry.array_memory(anyarray);
