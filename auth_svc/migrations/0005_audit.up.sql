-- The account of every call: the service adds to it and reads it. What is too old leaves by whole days,
-- through a function of the owner.

CREATE TABLE auth.audit_event (
    tenant_id text COLLATE "C" NOT NULL,
    time timestamptz NOT NULL,
    id text COLLATE "C" NOT NULL,
    recorder text NOT NULL,
    principal text COLLATE "C" NOT NULL,
    credential_id text NOT NULL,
    address text NOT NULL,
    rpc text NOT NULL,
    targets text[] NOT NULL,
    code smallint NOT NULL,
    duration interval NOT NULL,
    trace_id text NOT NULL,
    changed_fields text[] NOT NULL,
    received_messages bigint NOT NULL,
    sent_messages bigint NOT NULL,
    PRIMARY KEY (tenant_id, time, id)
) PARTITION BY RANGE (time);
COMMENT ON TABLE auth.audit_event IS
    'What was asked of services and of the gateway, by whom and how it ended. Partitions are UTC days.';
COMMENT ON COLUMN auth.audit_event.tenant_id IS
    'Of the caller, who need not exist; system: of nobody who is known, or of a service.';
COMMENT ON COLUMN auth.audit_event.code IS 'A google.rpc.Code.';
CREATE INDEX audit_event_principal ON auth.audit_event (tenant_id, principal, time, id);

ALTER TABLE auth.audit_event ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON auth.audit_event
    USING (tenant_id = nullif(current_setting('twinmesh.tenant', true), ''));

-- Makes the days that events come on, with the one before: a clock may lag. Returns how many were made.
CREATE FUNCTION auth.ensure_audit_days(days_ahead integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET timezone = 'UTC' SET lock_timeout = '4s'
AS $$
DECLARE
    day date := (now() AT TIME ZONE 'UTC')::date - 1;
    last constant date := (now() AT TIME ZONE 'UTC')::date + days_ahead;
    events text;
    made integer := 0;
BEGIN
    IF days_ahead NOT BETWEEN 1 AND 31 THEN
        RAISE invalid_parameter_value USING MESSAGE = format('1 to 31 days ahead, not %s', days_ahead);
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('auth.audit_event'));
    WHILE day <= last LOOP
        events := 'audit_event_' || to_char(day, 'YYYYMMDD');
        IF to_regclass(format('auth.%I', events)) IS NULL THEN
            -- Attaching, unlike CREATE … PARTITION OF, lets readers and writers go on.
            EXECUTE format('CREATE TABLE auth.%I (LIKE auth.audit_event)', events);
            EXECUTE format(
                'ALTER TABLE auth.audit_event ATTACH PARTITION auth.%I FOR VALUES FROM (%L) TO (%L)',
                events, day, day + 1
            );
            made := made + 1;
        END IF;
        day := day + 1;
    END LOOP;
    RETURN made;
END $$;
REVOKE ALL ON FUNCTION auth.ensure_audit_days(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION auth.ensure_audit_days(integer) TO twinmesh_auth;

-- Drops the days that are over for longer than events are kept; returns how many. Whoever has the service's
-- role can hide nothing of the last 30 days.
CREATE FUNCTION auth.drop_audit_days(kept_days integer) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET timezone = 'UTC' SET lock_timeout = '4s'
AS $$
DECLARE
    partition text;
    dropped integer := 0;
BEGIN
    IF kept_days IS NULL OR kept_days < 30 THEN
        RAISE invalid_parameter_value USING MESSAGE = format('audit events are kept 30 days at least, not %s', kept_days);
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('auth.audit_event'));
    FOR partition IN
        SELECT child.relname
        FROM pg_inherits
        JOIN pg_class AS child ON child.oid = pg_inherits.inhrelid
        WHERE pg_inherits.inhparent = 'auth.audit_event'::regclass
          AND to_date(right(child.relname, 8), 'YYYYMMDD') + 1 + kept_days <= now()
        ORDER BY child.relname
    LOOP
        EXECUTE format('DROP TABLE auth.%I', partition);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END $$;
REVOKE ALL ON FUNCTION auth.drop_audit_days(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION auth.drop_audit_days(integer) TO twinmesh_auth;

SELECT auth.ensure_audit_days(2);

-- Nobody may change or delete.
GRANT SELECT, INSERT ON auth.audit_event TO twinmesh_auth;
