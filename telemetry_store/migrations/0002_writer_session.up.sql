ALTER TABLE telemetry.writer_cursor ADD COLUMN session_id text NOT NULL DEFAULT '';
COMMENT ON COLUMN telemetry.writer_cursor.session_id IS
    'Run of the client that opened a stream last, as it named itself; only this one may resume.';
