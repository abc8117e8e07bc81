ALTER TABLE telemetry.writer_cursor DROP COLUMN session_id;
