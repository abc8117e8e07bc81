-- So that a reader of many commits knows how many it can take at once. Without a default: of commits of before nobody knows.
ALTER TABLE telemetry.ingest_commit
    ADD COLUMN doubles integer,
    ADD COLUMN ints integer,
    ADD COLUMN bools integer;
COMMENT ON COLUMN telemetry.ingest_commit.doubles IS 'How many of its samples in segments are doubles; NULL: not recorded.';
COMMENT ON COLUMN telemetry.ingest_commit.ints IS 'How many of its samples in segments are ints; NULL: not recorded.';
COMMENT ON COLUMN telemetry.ingest_commit.bools IS 'How many of its samples in segments are bools; NULL: not recorded.';
