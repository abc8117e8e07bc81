ALTER TABLE telemetry.request_id DROP COLUMN recorded_at;
ALTER TABLE telemetry.writer_outcome DROP COLUMN recorded_at;

DROP POLICY maintenance ON telemetry.dead_letter;
REVOKE ALL ON telemetry.dead_letter FROM twinmesh_maintenance;
REVOKE SELECT, DELETE ON telemetry.dead_letter FROM twinmesh_ingest;
REVOKE UPDATE (device_ids, reason, message, payload, payload_format, sample_count, replay_count, last_replay_at)
    ON telemetry.dead_letter FROM twinmesh_ingest;

-- What refers to the columns goes with them.
ALTER TABLE telemetry.dead_letter ADD COLUMN device_id text;
UPDATE telemetry.dead_letter SET device_id = device_ids[1];
ALTER TABLE telemetry.dead_letter
    DROP COLUMN device_ids,
    DROP COLUMN payload_format,
    DROP COLUMN sample_count,
    DROP COLUMN door,
    DROP COLUMN backfill_id,
    DROP COLUMN writer_id,
    DROP COLUMN sequence,
    DROP COLUMN request_id,
    DROP COLUMN message_id,
    DROP COLUMN replay_count,
    DROP COLUMN last_replay_at;
DROP INDEX telemetry.dead_letter_newest, telemetry.dead_letter_received;
COMMENT ON TABLE telemetry.dead_letter IS 'Messages that could not be processed, as received, and why.';
