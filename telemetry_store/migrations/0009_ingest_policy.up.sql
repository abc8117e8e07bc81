-- What each tenant allows of its telemetry: how late it may be, and how much. What is used of
-- a limit is counted here, for all processes together.

CREATE TABLE telemetry.ingest_policy (
    tenant_id text NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    update_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    late_window interval,
    future_window interval,
    raw_enabled boolean,
    raw_retention interval,
    dead_letter_retention interval,
    limits jsonb NOT NULL DEFAULT '[]',
    CONSTRAINT ingest_policy_pkey PRIMARY KEY (tenant_id),
    CONSTRAINT ingest_policy_windows CHECK (late_window >= '0' AND future_window >= '0'),
    CONSTRAINT ingest_policy_retentions CHECK (raw_retention > '0' AND dead_letter_retention > '0')
);
COMMENT ON TABLE telemetry.ingest_policy IS
    'One row per tenant that has changed its policy; no row, and null: as the installation is set. Never deleted, '
    'since processes look for rows whose update_time is new.';
COMMENT ON COLUMN telemetry.ingest_policy.raw_enabled IS 'Whether messages are kept as they came.';
COMMENT ON COLUMN telemetry.ingest_policy.limits IS
    'Array of {subject_kind, subject, samples_per_second, bytes_per_second, streams, inflight_bytes}; what is '
    'absent is not limited.';

---------------------------------------------------------------- what is used of limits

-- Lost in a crash of PostgreSQL, like what is in the memory of the processes: then counting begins anew.
CREATE UNLOGGED TABLE telemetry.limit_bucket (
    tenant_id text NOT NULL,
    subject_kind smallint NOT NULL,
    subject text NOT NULL,
    measure smallint NOT NULL,
    tokens double precision NOT NULL,
    used double precision NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT limit_bucket_pkey PRIMARY KEY (tenant_id, subject_kind, subject, measure)
) WITH (fillfactor = 50);
COMMENT ON TABLE telemetry.limit_bucket IS 'Token buckets of limits per second; processes take what they need for some moments.';
COMMENT ON COLUMN telemetry.limit_bucket.subject_kind IS '1 tenant, 2 device, 3 principal.';
COMMENT ON COLUMN telemetry.limit_bucket.measure IS '1 samples per second, 2 bytes per second.';
COMMENT ON COLUMN telemetry.limit_bucket.tokens IS 'Left at updated_at; below 0 when a batch was let in that is larger.';
COMMENT ON COLUMN telemetry.limit_bucket.used IS 'Taken in the last second, about: what was taken fades with a time constant of 1 s.';

CREATE UNLOGGED TABLE telemetry.limit_lease (
    tenant_id text NOT NULL,
    subject_kind smallint NOT NULL,
    subject text NOT NULL,
    measure smallint NOT NULL,
    holder uuid NOT NULL,
    amount bigint NOT NULL,
    renewed_at timestamptz NOT NULL,
    CONSTRAINT limit_lease_pkey PRIMARY KEY (tenant_id, subject_kind, subject, measure, holder)
) WITH (fillfactor = 50);
COMMENT ON TABLE telemetry.limit_lease IS
    'How much of a limit on what is used at once each process has; one that does not renew it is gone.';
COMMENT ON COLUMN telemetry.limit_lease.measure IS '3 streams, 4 bytes in flight.';
COMMENT ON COLUMN telemetry.limit_lease.holder IS 'A start of a process.';

-- Takes tokens out of buckets, each of which holds up to half a second's worth. By place in the
-- arrays, whose keys are distinct: what is given back, what the next batch needs, and what is
-- wanted with it. As long as a bucket holds anything the next batch gets all that it needs, and
-- the bucket owes the rest: a batch larger than a bucket would never come through otherwise.
CREATE FUNCTION telemetry.take_tokens(
    tenants text[], subject_kinds smallint[], subjects text[], measures smallint[], rates double precision[],
    returned double precision[], needed double precision[], wanted double precision[]
) RETURNS TABLE (place bigint, granted double precision, tokens double precision, used double precision)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog
AS $$
DECLARE
    burst_s constant double precision := 0.5;
    moment timestamptz;
BEGIN
    INSERT INTO telemetry.limit_bucket (tenant_id, subject_kind, subject, measure, tokens, used, updated_at)
    SELECT asked.tenant_id, asked.subject_kind, asked.subject, asked.measure, burst_s * asked.rate, 0, clock_timestamp()
    FROM unnest(tenants, subject_kinds, subjects, measures, rates)
        AS asked (tenant_id, subject_kind, subject, measure, rate)
    ORDER BY asked.tenant_id, asked.subject_kind, asked.subject, asked.measure
    ON CONFLICT ON CONSTRAINT limit_bucket_pkey DO NOTHING;
    -- In one order, so that processes never wait for each other in a circle.
    PERFORM FROM telemetry.limit_bucket AS b
    JOIN unnest(tenants, subject_kinds, subjects, measures) AS asked (tenant_id, subject_kind, subject, measure)
        ON (b.tenant_id, b.subject_kind, b.subject, b.measure)
        = (asked.tenant_id, asked.subject_kind, asked.subject, asked.measure)
    ORDER BY b.tenant_id, b.subject_kind, b.subject, b.measure
    FOR UPDATE OF b;
    moment := clock_timestamp();
    RETURN QUERY
    WITH level AS (
        SELECT asked.place, asked.tenant_id, asked.subject_kind, asked.subject, asked.measure,
            asked.needed, asked.wanted, asked.returned,
            least(
                b.tokens + asked.rate * greatest(extract(epoch FROM moment - b.updated_at), 0) + asked.returned,
                burst_s * asked.rate
            ) AS tokens,
            b.used * exp(-least(greatest(extract(epoch FROM moment - b.updated_at), 0), 100)) AS used
        FROM unnest(tenants, subject_kinds, subjects, measures, rates, returned, needed, wanted)
            WITH ORDINALITY
            AS asked (tenant_id, subject_kind, subject, measure, rate, returned, needed, wanted, place)
        JOIN telemetry.limit_bucket AS b
            ON (b.tenant_id, b.subject_kind, b.subject, b.measure)
            = (asked.tenant_id, asked.subject_kind, asked.subject, asked.measure)
    ), grants AS (
        SELECT level.*,
            CASE WHEN level.tokens > 0
                THEN greatest(level.needed, least(level.wanted, level.tokens))
                ELSE 0
            END AS granted
        FROM level
    )
    UPDATE telemetry.limit_bucket AS b
    SET tokens = g.tokens - g.granted,
        used = greatest(g.used + g.granted - g.returned, 0),
        updated_at = moment
    FROM grants AS g
    WHERE (b.tenant_id, b.subject_kind, b.subject, b.measure) = (g.tenant_id, g.subject_kind, g.subject, g.measure)
    RETURNING g.place, g.granted, b.tokens, b.used;
END $$;
REVOKE ALL ON FUNCTION telemetry.take_tokens(
    text[], smallint[], text[], smallint[], double precision[],
    double precision[], double precision[], double precision[]
) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.take_tokens(
    text[], smallint[], text[], smallint[], double precision[],
    double precision[], double precision[], double precision[]
) TO twinmesh_ingest;

-- Says how much of limits on what is used at once a process wants from now on, and grants what
-- the others, as far as they are alive, leave. It says so anew before `alive` is over.
CREATE FUNCTION telemetry.hold_capacity(
    me uuid, alive interval,
    tenants text[], subject_kinds smallint[], subjects text[], measures smallint[], limits bigint[], wanted bigint[]
) RETURNS TABLE (place bigint, granted bigint, used bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog
AS $$
DECLARE
    asked record;
BEGIN
    FOR asked IN
        SELECT a.*
        FROM unnest(tenants, subject_kinds, subjects, measures, limits, wanted)
            WITH ORDINALITY AS a (tenant_id, subject_kind, subject, measure, most, wanted, place)
        ORDER BY a.tenant_id, a.subject_kind, a.subject, a.measure
    LOOP
        PERFORM pg_advisory_xact_lock(hashtextextended(
            format('%s/%s/%s/%s', asked.tenant_id, asked.subject_kind, asked.subject, asked.measure),
            hashtext('telemetry.limit_lease')
        ));
        place := asked.place;
        SELECT coalesce(sum(lease.amount), 0) INTO used
        FROM telemetry.limit_lease AS lease
        WHERE (lease.tenant_id, lease.subject_kind, lease.subject, lease.measure)
            = (asked.tenant_id, asked.subject_kind, asked.subject, asked.measure)
            AND lease.holder <> me AND lease.renewed_at > clock_timestamp() - alive;
        granted := greatest(least(asked.wanted, asked.most - used), 0);
        used := used + granted;
        IF granted = 0 THEN
            DELETE FROM telemetry.limit_lease AS lease
            WHERE (lease.tenant_id, lease.subject_kind, lease.subject, lease.measure, lease.holder)
                = (asked.tenant_id, asked.subject_kind, asked.subject, asked.measure, me);
        ELSE
            INSERT INTO telemetry.limit_lease
                (tenant_id, subject_kind, subject, measure, holder, amount, renewed_at)
            VALUES
                (asked.tenant_id, asked.subject_kind, asked.subject, asked.measure, me, granted, clock_timestamp())
            ON CONFLICT ON CONSTRAINT limit_lease_pkey
                DO UPDATE SET amount = excluded.amount, renewed_at = excluded.renewed_at;
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;
REVOKE ALL ON FUNCTION telemetry.hold_capacity(
    uuid, interval, text[], smallint[], text[], smallint[], bigint[], bigint[]
) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.hold_capacity(
    uuid, interval, text[], smallint[], text[], smallint[], bigint[], bigint[]
) TO twinmesh_ingest;

---------------------------------------------------------------- who was limited

CREATE TABLE telemetry.limit_hit (
    tenant_id text NOT NULL,
    limit_hit_id bigint GENERATED ALWAYS AS IDENTITY,
    minute timestamptz NOT NULL,
    limit_name text NOT NULL,
    subject text NOT NULL,
    principal text NOT NULL,
    writer_id text NOT NULL,
    limit_value bigint NOT NULL,
    first_time timestamptz NOT NULL,
    last_time timestamptz NOT NULL,
    batches bigint NOT NULL,
    samples bigint NOT NULL,
    bytes bigint NOT NULL,
    first_sequence bigint,
    last_sequence bigint,
    CONSTRAINT limit_hit_pkey PRIMARY KEY (tenant_id, limit_hit_id),
    CONSTRAINT limit_hit_key UNIQUE (tenant_id, minute, limit_name, subject, principal, writer_id)
);
CREATE INDEX limit_hit_last_time ON telemetry.limit_hit (last_time);
COMMENT ON TABLE telemetry.limit_hit IS
    'What was sent back because of a limit: a row per minute, limit and sender. What is sent back several times '
    'counts each time.';
COMMENT ON COLUMN telemetry.limit_hit.subject IS 'Device or principal that the limit is of; empty: the tenant, or a connection.';
COMMENT ON COLUMN telemetry.limit_hit.writer_id IS 'Empty without one.';
COMMENT ON COLUMN telemetry.limit_hit.first_sequence IS 'Lowest sequence sent back; null without a writer.';

---------------------------------------------------------------- tenancy

ALTER TABLE telemetry.ingest_policy ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE telemetry.limit_bucket ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE telemetry.limit_lease ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE telemetry.limit_hit ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

-- The ingest role bypasses row-level security. It counts by function only.
GRANT SELECT, INSERT, UPDATE ON telemetry.ingest_policy, telemetry.limit_hit TO twinmesh_ingest;
GRANT SELECT ON telemetry.limit_bucket, telemetry.limit_lease TO twinmesh_ingest;

-- Maintenance deletes what is old, as tenants say.
GRANT SELECT (tenant_id, raw_retention, dead_letter_retention) ON telemetry.ingest_policy TO twinmesh_maintenance;
CREATE POLICY maintenance ON telemetry.ingest_policy FOR SELECT TO twinmesh_maintenance USING (true);
GRANT SELECT, DELETE ON telemetry.limit_bucket, telemetry.limit_lease, telemetry.limit_hit TO twinmesh_maintenance;
CREATE POLICY maintenance ON telemetry.limit_bucket TO twinmesh_maintenance USING (true) WITH CHECK (true);
CREATE POLICY maintenance ON telemetry.limit_lease TO twinmesh_maintenance USING (true) WITH CHECK (true);
CREATE POLICY maintenance ON telemetry.limit_hit TO twinmesh_maintenance USING (true) WITH CHECK (true);
