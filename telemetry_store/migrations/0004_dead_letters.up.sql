-- Dead letters of every door, to be listed, sent again and purged; and what receipts say.

ALTER TABLE telemetry.dead_letter
    ADD COLUMN device_ids text[] NOT NULL DEFAULT '{}',
    ADD COLUMN payload_format smallint NOT NULL DEFAULT 0,
    ADD COLUMN sample_count integer NOT NULL DEFAULT 0,
    ADD COLUMN door text NOT NULL DEFAULT '',
    ADD COLUMN backfill_id text,
    ADD COLUMN writer_id text,
    ADD COLUMN sequence bigint,
    ADD COLUMN request_id text,
    ADD COLUMN message_id text,
    ADD COLUMN replay_count integer NOT NULL DEFAULT 0,
    ADD COLUMN last_replay_at timestamptz,
    ADD CONSTRAINT dead_letter_format_known CHECK (payload_format BETWEEN 0 AND 3);
-- Until now only messages of devices left letters.
UPDATE telemetry.dead_letter
SET device_ids = array_remove(ARRAY[device_id], NULL),
    payload_format = CASE WHEN payload = '' THEN 0 ELSE 1 END,
    door = 'mqtt';
ALTER TABLE telemetry.dead_letter DROP COLUMN device_id;

COMMENT ON TABLE telemetry.dead_letter IS
    'What was refused, of every door: one letter per message, or per batch and reason. A replay takes from it what '
    'can be stored.';
COMMENT ON COLUMN telemetry.dead_letter.payload_format IS
    '0 none, 1 a device''s message as received, 2 and 3 a twinmesh.ingest.v1.RefusedBatch of readings or of columns.';
COMMENT ON COLUMN telemetry.dead_letter.sample_count IS 'Samples refused; 0 when nobody could count them.';
COMMENT ON COLUMN telemetry.dead_letter.backfill_id IS 'The backfill that the batch named.';
COMMENT ON COLUMN telemetry.dead_letter.sequence IS 'With writer_id the batch it comes from; else request_id or message_id.';
COMMENT ON COLUMN telemetry.dead_letter.message_id IS '<stream>:<number> of a message of a device.';
COMMENT ON COLUMN telemetry.dead_letter.replay_count IS 'How often a replay failed; each one that changes the letter raises it.';

-- The newest first, page by page.
CREATE INDEX dead_letter_newest ON telemetry.dead_letter (tenant_id, received_at DESC, dead_letter_id DESC);
CREATE INDEX dead_letter_devices ON telemetry.dead_letter USING gin (device_ids);
-- For retention, which is about all tenants' letters.
CREATE INDEX dead_letter_received ON telemetry.dead_letter USING brin (received_at) WITH (autosummarize = on);
-- Each letter is in one of these at most.
CREATE INDEX dead_letter_writer ON telemetry.dead_letter (tenant_id, writer_id, sequence) WHERE writer_id IS NOT NULL;
CREATE INDEX dead_letter_request ON telemetry.dead_letter (tenant_id, request_id) WHERE request_id IS NOT NULL;
CREATE INDEX dead_letter_message ON telemetry.dead_letter (tenant_id, message_id) WHERE message_id IS NOT NULL;

GRANT SELECT, DELETE ON telemetry.dead_letter TO twinmesh_ingest;
GRANT UPDATE (device_ids, reason, message, payload, payload_format, sample_count, replay_count, last_replay_at)
    ON telemetry.dead_letter TO twinmesh_ingest;
GRANT SELECT, DELETE ON telemetry.dead_letter TO twinmesh_maintenance;
CREATE POLICY maintenance ON telemetry.dead_letter TO twinmesh_maintenance USING (true) WITH CHECK (true);

-- When an outcome was recorded; null: before there were receipts.
ALTER TABLE telemetry.writer_outcome ADD COLUMN recorded_at timestamptz;
ALTER TABLE telemetry.writer_outcome ALTER COLUMN recorded_at SET DEFAULT now();
ALTER TABLE telemetry.request_id ADD COLUMN recorded_at timestamptz;
ALTER TABLE telemetry.request_id ALTER COLUMN recorded_at SET DEFAULT now();
