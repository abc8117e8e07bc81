-- Messages that come in chunks, until they are whole or have expired.

CREATE TABLE telemetry.chunked_message (
    tenant_id text NOT NULL,
    gateway_id text NOT NULL,
    message_id text NOT NULL,
    total integer NOT NULL,
    is_array boolean NOT NULL,
    all_or_nothing boolean,
    principal text NOT NULL,
    door text NOT NULL,
    arrival_time bigint NOT NULL,
    received integer NOT NULL,
    bytes bigint NOT NULL,
    first_received_at timestamptz NOT NULL DEFAULT now(),
    last_received_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT chunked_message_pkey PRIMARY KEY (tenant_id, gateway_id, message_id)
) WITH (fillfactor = 50);
COMMENT ON TABLE telemetry.chunked_message IS
    'Messages of which chunks have come. A row goes in the commit that stores what the message says, or its dead letter.';
COMMENT ON COLUMN telemetry.chunked_message.is_array IS 'Chunks are arrays whose elements are the message''s, not pieces of its text.';
COMMENT ON COLUMN telemetry.chunked_message.all_or_nothing IS 'Null: as the gateway''s type says.';
COMMENT ON COLUMN telemetry.chunked_message.principal IS 'Who sent the chunk that came first.';
COMMENT ON COLUMN telemetry.chunked_message.door IS 'Which way that one came.';
COMMENT ON COLUMN telemetry.chunked_message.arrival_time IS 'When that one came; what states no time is of then.';
COMMENT ON COLUMN telemetry.chunked_message.received IS 'How many chunks there are; with total the message is whole.';

CREATE TABLE telemetry.message_chunk (
    tenant_id text NOT NULL,
    gateway_id text NOT NULL,
    message_id text NOT NULL,
    chunk_index integer NOT NULL,
    payload bytea NOT NULL,
    CONSTRAINT message_chunk_pkey PRIMARY KEY (tenant_id, gateway_id, message_id, chunk_index)
);
COMMENT ON TABLE telemetry.message_chunk IS 'Chunks of the messages in chunked_message.';

ALTER TABLE telemetry.chunked_message ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE telemetry.message_chunk ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
GRANT SELECT, INSERT, UPDATE, DELETE ON telemetry.chunked_message TO twinmesh_ingest;
GRANT SELECT, INSERT, DELETE ON telemetry.message_chunk TO twinmesh_ingest;
