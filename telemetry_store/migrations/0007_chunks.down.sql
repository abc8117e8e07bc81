DROP TABLE telemetry.message_chunk;
DROP TABLE telemetry.chunked_message;
