-- Secrets that a rotation has replaced and that are good until their overlap is over.
-- The newest stays in auth.api_key, where the code of before looks for it.
ALTER TABLE auth.api_key ADD COLUMN generation integer NOT NULL DEFAULT 1 CHECK (generation >= 1);
CREATE TABLE auth.api_key_former_secret (
    tenant_id text COLLATE "C" NOT NULL,
    key_id text COLLATE "C" NOT NULL,
    generation integer NOT NULL CHECK (generation >= 1),
    hash bytea NOT NULL CHECK (octet_length(hash) = 32), -- SHA-256 of the secret
    expire_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, key_id, generation),
    FOREIGN KEY (tenant_id, key_id) REFERENCES auth.api_key
);
CREATE INDEX api_key_former_secret_by_expire_time ON auth.api_key_former_secret (expire_time);

ALTER TABLE auth.api_key_former_secret ENABLE ROW LEVEL SECURITY;
ALTER TABLE auth.api_key_former_secret FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON auth.api_key_former_secret
    USING (tenant_id = nullif(current_setting('twinmesh.tenant', true), ''));

-- Whose overlaps are over, in all tenants: what they opened is ended, each under its own tenant.
CREATE FUNCTION auth.tenants_with_ended_secrets()
    RETURNS SETOF text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog
    AS $$
        SELECT DISTINCT api_key_former_secret.tenant_id
        FROM auth.api_key_former_secret
        WHERE api_key_former_secret.expire_time <= clock_timestamp()
    $$;
REVOKE EXECUTE ON FUNCTION auth.tenants_with_ended_secrets FROM PUBLIC;

GRANT UPDATE (hash, generation) ON auth.api_key TO twinmesh_auth;
GRANT SELECT, INSERT, DELETE, UPDATE (expire_time) ON auth.api_key_former_secret TO twinmesh_auth;
GRANT EXECUTE ON FUNCTION auth.tenants_with_ended_secrets TO twinmesh_auth;
