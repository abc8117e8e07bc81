-- Failed log-ins, counted for all processes together. An attempt counts before its password is looked at,
-- and is taken back when it fits: otherwise many at once would all be free.

-- Of accounts, whether they exist or not, since the answer must not tell: hence no foreign key.
CREATE TABLE auth.account_failures (
    tenant_id text COLLATE "C" NOT NULL,
    username text COLLATE "C" NOT NULL,
    failures integer NOT NULL,
    blocked_until_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, username)
);
CREATE INDEX account_failures_by_update_time ON auth.account_failures (update_time);

-- Of addresses, which are no tenant's.
CREATE TABLE auth.address_failures (
    address text COLLATE "C" NOT NULL,
    secret text COLLATE "C" NOT NULL CHECK (secret IN ('password', 'refresh_token')),
    failures integer NOT NULL,
    blocked_until_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    PRIMARY KEY (address, secret)
);
CREATE INDEX address_failures_by_update_time ON auth.address_failures (update_time);

ALTER TABLE auth.account_failures ENABLE ROW LEVEL SECURITY;
ALTER TABLE auth.account_failures FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON auth.account_failures
    USING (tenant_id = nullif(current_setting('twinmesh.tenant', true), ''));

-- Forgets those of all tenants; rows that are in use just now wait for the next time.
CREATE FUNCTION auth.forget_account_failures(before timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog
    AS $$
        DELETE FROM auth.account_failures
        WHERE (tenant_id, username) IN (
            SELECT tenant_id, username FROM auth.account_failures
            WHERE update_time < before
            LIMIT 10000
            FOR UPDATE SKIP LOCKED
        )
    $$;
REVOKE EXECUTE ON FUNCTION auth.forget_account_failures FROM PUBLIC;

GRANT SELECT, INSERT, DELETE, UPDATE (failures, blocked_until_time, update_time)
    ON auth.account_failures, auth.address_failures TO twinmesh_auth;
GRANT EXECUTE ON FUNCTION auth.forget_account_failures TO twinmesh_auth;
