-- Signatures that were taken, each for as long as its date would be good again. Unlogged: written with every
-- signed request, and lost in a crash of PostgreSQL, after which those of the last minutes could come again.
CREATE UNLOGGED TABLE auth.signed_request (
    tenant_id text COLLATE "C" NOT NULL,
    signature bytea NOT NULL CHECK (octet_length(signature) = 32),
    expire_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, signature)
);
CREATE INDEX signed_request_by_expire_time ON auth.signed_request (expire_time);

ALTER TABLE auth.signed_request ENABLE ROW LEVEL SECURITY;
ALTER TABLE auth.signed_request FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON auth.signed_request
    USING (tenant_id = nullif(current_setting('twinmesh.tenant', true), ''));

-- Forgets those of all tenants, the first 10,000.
CREATE FUNCTION auth.forget_signed_requests(before timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog
    AS $$
        DELETE FROM auth.signed_request
        WHERE (tenant_id, signature) IN (
            SELECT tenant_id, signature FROM auth.signed_request
            WHERE expire_time < before
            LIMIT 10000
            FOR UPDATE SKIP LOCKED
        )
    $$;
REVOKE EXECUTE ON FUNCTION auth.forget_signed_requests FROM PUBLIC;

GRANT SELECT, INSERT ON auth.signed_request TO twinmesh_auth;
GRANT EXECUTE ON FUNCTION auth.forget_signed_requests TO twinmesh_auth;
