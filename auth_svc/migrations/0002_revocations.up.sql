-- What no longer counts although its tokens have not expired; a row stays until they have.
CREATE TABLE auth.revocation (
    tenant_id text COLLATE "C" NOT NULL,
    -- In the order of commits: whoever inserts holds a lock until then.
    number bigint GENERATED ALWAYS AS IDENTITY,
    kind text NOT NULL CHECK (kind IN ('session', 'user', 'api_key', 'certificate', 'tenant')),
    id text COLLATE "C" NOT NULL,
    revoke_time timestamptz NOT NULL,
    until_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, number)
);
CREATE INDEX revocation_by_number ON auth.revocation (number);

ALTER TABLE auth.revocation ENABLE ROW LEVEL SECURITY;
ALTER TABLE auth.revocation FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON auth.revocation
    USING (tenant_id = nullif(current_setting('twinmesh.tenant', true), ''));

-- Every service must hear of revocations in every tenant.
CREATE FUNCTION auth.revocations_after(after bigint, most integer)
    RETURNS TABLE (
        number bigint, tenant_id text, kind text, id text, revoke_time timestamptz, until_time timestamptz
    )
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog
    AS $$
        SELECT revocation.number, revocation.tenant_id, revocation.kind, revocation.id,
               revocation.revoke_time, revocation.until_time
        FROM auth.revocation
        WHERE revocation.number > after AND revocation.until_time > clock_timestamp()
        ORDER BY revocation.number
        LIMIT most
    $$;
REVOKE EXECUTE ON FUNCTION auth.revocations_after FROM PUBLIC;
GRANT EXECUTE ON FUNCTION auth.revocations_after TO twinmesh_auth;
GRANT SELECT, INSERT, DELETE ON auth.revocation TO twinmesh_auth;

DROP FUNCTION auth.api_keys_revoked_within;
DROP INDEX auth.api_key_by_revoke_time;
