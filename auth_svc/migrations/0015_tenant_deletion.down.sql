DROP FUNCTION auth.delete_tenant_rows;
DROP FUNCTION auth.closed_tenants_after;
DROP FUNCTION auth.tenants_after;
CREATE FUNCTION auth.tenants_after(after text, most integer)
    RETURNS TABLE (tenant_id text, create_time timestamptz, suspend_time timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog
    AS $$
        SELECT tenant.tenant_id, tenant.create_time, tenant.suspend_time
        FROM auth.tenant
        WHERE tenant.tenant_id > after
        ORDER BY tenant.tenant_id
        LIMIT most
    $$;
REVOKE EXECUTE ON FUNCTION auth.tenants_after FROM PUBLIC;
GRANT EXECUTE ON FUNCTION auth.tenants_after TO twinmesh_auth;
DROP TABLE auth.tenant_deletion;
-- Deleted tenants stay suspended, and so shut, for the code of before; it could resume them, empty.
DROP INDEX auth.tenant_closed, auth.tenant_purged;
ALTER TABLE auth.tenant
    DROP COLUMN request_id, DROP COLUMN delete_time, DROP COLUMN export_digest, DROP COLUMN purge_time;
