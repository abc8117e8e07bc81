ALTER TABLE auth.tenant
    ADD COLUMN request_id text COLLATE "C",     -- of the call that made it, which may come again
    ADD COLUMN delete_time timestamptz,         -- since then all that it has is to be deleted
    ADD COLUMN export_digest text,              -- of the export that was named then
    ADD COLUMN purge_time timestamptz,          -- when the last service had nothing of it any more
    ADD CONSTRAINT tenant_deleted_when_suspended
        CHECK (delete_time IS NULL OR (suspend_time IS NOT NULL AND export_digest IS NOT NULL)),
    ADD CONSTRAINT tenant_purged_when_deleted CHECK (purge_time IS NULL OR delete_time IS NOT NULL);
CREATE INDEX tenant_closed ON auth.tenant (tenant_id) WHERE suspend_time IS NOT NULL AND purge_time IS NULL;
CREATE INDEX tenant_purged ON auth.tenant (purge_time) WHERE purge_time IS NOT NULL;

-- Which services have nothing of a deleted tenant any more.
CREATE TABLE auth.tenant_deletion (
    tenant_id text COLLATE "C" NOT NULL REFERENCES auth.tenant,
    service text COLLATE "C" NOT NULL,
    done_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, service)
);
ALTER TABLE auth.tenant_deletion ENABLE ROW LEVEL SECURITY;
ALTER TABLE auth.tenant_deletion FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON auth.tenant_deletion
    USING (tenant_id = nullif(current_setting('twinmesh.tenant', true), ''));

DROP FUNCTION auth.tenants_after;
CREATE FUNCTION auth.tenants_after(after text, most integer)
    RETURNS TABLE (
        tenant_id text, create_time timestamptz, suspend_time timestamptz, delete_time timestamptz,
        purge_time timestamptz
    )
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog
    AS $$
        SELECT tenant.tenant_id, tenant.create_time, tenant.suspend_time, tenant.delete_time,
               tenant.purge_time
        FROM auth.tenant
        WHERE tenant.tenant_id > after
        ORDER BY tenant.tenant_id
        LIMIT most
    $$;

-- Every service must hear which tenants are closed: that, since when, and who has deleted what it had. A day
-- after the last of them had nothing any more, nothing comes to light: else all that ever were would be read.
CREATE FUNCTION auth.closed_tenants_after(after text, most integer)
    RETURNS TABLE (
        tenant_id text, suspend_time timestamptz, delete_time timestamptz, done_by text[]
    )
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog
    AS $$
        SELECT tenant.tenant_id, tenant.suspend_time, tenant.delete_time,
               ARRAY (SELECT done.service FROM auth.tenant_deletion AS done
                      WHERE done.tenant_id = tenant.tenant_id)
        FROM auth.tenant
        WHERE tenant.suspend_time IS NOT NULL AND tenant.tenant_id > after
          AND (tenant.purge_time IS NULL OR tenant.purge_time > now() - interval '1 day')
        ORDER BY tenant.tenant_id
        LIMIT most
    $$;
-- Nobody else deletes keys and certificates.
CREATE FUNCTION auth.delete_tenant_rows(deleted text, most integer) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog
    AS $$
DECLARE
    leaf regclass;
    removed bigint;
    total bigint := 0;
BEGIN
    IF NOT EXISTS (SELECT FROM auth.tenant WHERE tenant_id = deleted AND delete_time IS NOT NULL) THEN
        RAISE EXCEPTION 'tenant % is not deleted', deleted USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    -- What is revoked stays on the CRL until it expires, with what it was renewed from.
    DELETE FROM auth.device_certificate WHERE ctid = ANY (ARRAY (
        SELECT gone.ctid FROM auth.device_certificate AS gone
        WHERE gone.tenant_id = deleted
          AND (gone.revoke_time IS NULL OR gone.expire_time <= clock_timestamp())
          AND NOT EXISTS (
              SELECT FROM auth.device_certificate AS newer
              WHERE newer.tenant_id = gone.tenant_id AND newer.renewed_from = gone.id
          )
        LIMIT most
    ));
    GET DIAGNOSTICS total = ROW_COUNT;
    -- Whatever has rows of tenants, also what later migrations add; but its id, and the account of calls, whose
    -- days are dropped as everybody's. Those that others reference go after them.
    FOR leaf IN
        SELECT class.oid
        FROM pg_class AS class
        JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
        JOIN pg_attribute AS attribute ON attribute.attrelid = class.oid AND attribute.attname = 'tenant_id'
        WHERE namespace.nspname = 'auth' AND class.relkind = 'r' AND NOT class.relispartition
          AND class.relname NOT IN ('tenant', 'tenant_deletion', 'device_certificate')
        ORDER BY array_position(
            ARRAY['refresh_token', 'session', 'user_account', 'role', 'api_key_former_secret', 'api_key'],
            class.relname::text
        ) NULLS FIRST, class.oid
    LOOP
        EXIT WHEN total >= most;
        EXECUTE format(
            'DELETE FROM %s WHERE ctid = ANY (ARRAY (SELECT ctid FROM %s WHERE tenant_id = $1 LIMIT $2))', leaf, leaf
        ) USING deleted, most - total;
        GET DIAGNOSTICS removed = ROW_COUNT;
        total := total + removed;
    END LOOP;
    RETURN total;
END
$$;
COMMENT ON FUNCTION auth.delete_tenant_rows IS
    'Deletes so many rows of a deleted tenant, and returns how many; refuses any other tenant.';

REVOKE EXECUTE ON FUNCTION auth.tenants_after, auth.closed_tenants_after, auth.delete_tenant_rows FROM PUBLIC;
GRANT EXECUTE ON FUNCTION auth.tenants_after, auth.closed_tenants_after, auth.delete_tenant_rows TO twinmesh_auth;

GRANT UPDATE (delete_time, export_digest, purge_time) ON auth.tenant TO twinmesh_auth;
GRANT SELECT, INSERT ON auth.tenant_deletion TO twinmesh_auth;
