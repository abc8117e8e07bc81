-- A tenant's own roles; the built-in ones are code, and every tenant has them.
CREATE TABLE auth.role (
    tenant_id text COLLATE "C" NOT NULL REFERENCES auth.tenant,
    id text COLLATE "C" NOT NULL
        CHECK (id ~ '^[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?$')
        CHECK (id NOT IN ('admin', 'operator', 'analyst', 'viewer', 'api_client')),
    display_name text NOT NULL,
    permissions text[] NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id)
);

-- `version` changes with whatever a log-in depends on, the permissions of the user's role included.
ALTER TABLE auth.user_account
    DROP CONSTRAINT user_account_role_check,
    ADD COLUMN display_name text NOT NULL DEFAULT '',
    ADD COLUMN disabled boolean NOT NULL DEFAULT false,
    ADD COLUMN one_time_expire_time timestamptz, -- of a one-time password; absent: it is the user's own
    ADD COLUMN version bigint NOT NULL DEFAULT 1,
    ADD COLUMN update_time timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN custom_role text COLLATE "C" GENERATED ALWAYS AS (
        CASE WHEN role IN ('admin', 'operator', 'analyst', 'viewer', 'api_client') THEN NULL ELSE role END
    ) STORED,
    ADD CONSTRAINT user_account_custom_role_fkey FOREIGN KEY (tenant_id, custom_role) REFERENCES auth.role;
CREATE INDEX user_account_by_custom_role ON auth.user_account (tenant_id, custom_role)
    WHERE custom_role IS NOT NULL;

ALTER TABLE auth.role ENABLE ROW LEVEL SECURITY;
ALTER TABLE auth.role FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON auth.role
    USING (tenant_id = nullif(current_setting('twinmesh.tenant', true), ''));

GRANT SELECT, INSERT, DELETE, UPDATE (display_name, permissions, version, update_time) ON auth.role
    TO twinmesh_auth;
GRANT DELETE,
    UPDATE (display_name, role, disabled, password_hash, one_time_expire_time, version, update_time)
    ON auth.user_account TO twinmesh_auth;
-- Who changes rights locks the tenant's row, and locking needs the right to update a column.
GRANT UPDATE (create_time) ON auth.tenant TO twinmesh_auth;
