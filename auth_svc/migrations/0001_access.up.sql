CREATE SCHEMA auth;
GRANT USAGE ON SCHEMA auth TO twinmesh_auth;

-- Tenants ------------------------------------------------------------------

CREATE TABLE auth.tenant (
    tenant_id text COLLATE "C" PRIMARY KEY
        CHECK (tenant_id ~ '^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$'),
    create_time timestamptz NOT NULL
);

CREATE TABLE auth.user_account (
    tenant_id text COLLATE "C" NOT NULL REFERENCES auth.tenant,
    username text COLLATE "C" NOT NULL CHECK (length(username) BETWEEN 1 AND 128),
    password_hash text NOT NULL, -- argon2id, in its PHC string form
    role text NOT NULL CHECK (role IN ('admin', 'operator', 'analyst', 'viewer', 'api_client')),
    create_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, username)
);

-- Sessions -----------------------------------------------------------------

-- One log-in: the family of all refresh tokens that follow from it.
CREATE TABLE auth.session (
    tenant_id text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    username text COLLATE "C" NOT NULL,
    create_time timestamptz NOT NULL,
    expire_time timestamptz NOT NULL,      -- unless it is refreshed
    end_time timestamptz NOT NULL,         -- however often it is refreshed
    revoke_time timestamptz,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, username) REFERENCES auth.user_account ON DELETE CASCADE,
    CHECK (expire_time <= end_time)
);
CREATE INDEX session_by_user ON auth.session (tenant_id, username, expire_time);

-- Used ones stay as long as their session, so that a second use is recognised.
CREATE TABLE auth.refresh_token (
    tenant_id text COLLATE "C" NOT NULL,
    session_id text COLLATE "C" NOT NULL,
    generation integer NOT NULL CHECK (generation >= 1),
    hash bytea NOT NULL CHECK (octet_length(hash) = 32), -- SHA-256 of the secret
    use_time timestamptz,
    replay_time timestamptz,               -- the one retry that is allowed
    PRIMARY KEY (tenant_id, session_id, generation),
    UNIQUE (tenant_id, session_id, hash),
    FOREIGN KEY (tenant_id, session_id) REFERENCES auth.session ON DELETE CASCADE
);

-- Keys ---------------------------------------------------------------------

CREATE TABLE auth.api_key (
    tenant_id text COLLATE "C" NOT NULL REFERENCES auth.tenant,
    id text COLLATE "C" NOT NULL CHECK (id ~ '^[a-z0-9]{1,64}$'),
    hash bytea NOT NULL CHECK (octet_length(hash) = 32), -- SHA-256 of the secret
    display_name text NOT NULL,
    permissions text[] NOT NULL,
    creator text NOT NULL,
    create_time timestamptz NOT NULL,
    expire_time timestamptz,
    revoke_time timestamptz,
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX api_key_by_revoke_time ON auth.api_key (revoke_time) WHERE revoke_time IS NOT NULL;

-- The installation's, not a tenant's. Private keys are encrypted with a key derived
-- from the mesh secret, which the database never sees.
CREATE TABLE auth.signing_key (
    kid text COLLATE "C" PRIMARY KEY,
    public_jwk jsonb NOT NULL,
    encrypted_private_key bytea NOT NULL,
    create_time timestamptz NOT NULL,
    activate_time timestamptz NOT NULL,    -- signs from then on
    retire_time timestamptz                -- is published until then; set when the next one is made
);

-- Row-level security -------------------------------------------------------

ALTER TABLE auth.tenant ENABLE ROW LEVEL SECURITY;
ALTER TABLE auth.tenant FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON auth.tenant
    USING (tenant_id = nullif(current_setting('twinmesh.tenant', true), ''));

ALTER TABLE auth.user_account ENABLE ROW LEVEL SECURITY;
ALTER TABLE auth.user_account FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON auth.user_account
    USING (tenant_id = nullif(current_setting('twinmesh.tenant', true), ''));

ALTER TABLE auth.session ENABLE ROW LEVEL SECURITY;
ALTER TABLE auth.session FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON auth.session
    USING (tenant_id = nullif(current_setting('twinmesh.tenant', true), ''));

ALTER TABLE auth.refresh_token ENABLE ROW LEVEL SECURITY;
ALTER TABLE auth.refresh_token FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON auth.refresh_token
    USING (tenant_id = nullif(current_setting('twinmesh.tenant', true), ''));

ALTER TABLE auth.api_key ENABLE ROW LEVEL SECURITY;
ALTER TABLE auth.api_key FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON auth.api_key
    USING (tenant_id = nullif(current_setting('twinmesh.tenant', true), ''));

-- Every process must hear of revocations in every tenant; it learns the ids, nothing else.
CREATE FUNCTION auth.api_keys_revoked_within(period interval)
    RETURNS TABLE (tenant_id text, id text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog
    AS $$
        SELECT api_key.tenant_id, api_key.id
        FROM auth.api_key
        WHERE api_key.revoke_time > clock_timestamp() - period
    $$;
REVOKE EXECUTE ON FUNCTION auth.api_keys_revoked_within FROM PUBLIC;

-- Grants -------------------------------------------------------------------

GRANT SELECT, INSERT ON auth.tenant, auth.user_account TO twinmesh_auth;
GRANT SELECT, INSERT, DELETE, UPDATE (expire_time, revoke_time) ON auth.session TO twinmesh_auth;
GRANT SELECT, INSERT, UPDATE (use_time, replay_time) ON auth.refresh_token TO twinmesh_auth;
GRANT SELECT, INSERT, UPDATE (revoke_time) ON auth.api_key TO twinmesh_auth;
GRANT SELECT, INSERT, DELETE, UPDATE (retire_time) ON auth.signing_key TO twinmesh_auth;
GRANT EXECUTE ON FUNCTION auth.api_keys_revoked_within TO twinmesh_auth;
