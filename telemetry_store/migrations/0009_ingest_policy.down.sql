DROP FUNCTION telemetry.hold_capacity(uuid, interval, text[], smallint[], text[], smallint[], bigint[], bigint[]);
DROP FUNCTION telemetry.take_tokens(
    text[], smallint[], text[], smallint[], double precision[],
    double precision[], double precision[], double precision[]
);
DROP TABLE telemetry.limit_hit;
DROP TABLE telemetry.limit_lease;
DROP TABLE telemetry.limit_bucket;
DROP TABLE telemetry.ingest_policy;
