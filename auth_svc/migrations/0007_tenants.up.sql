ALTER TABLE auth.tenant ADD COLUMN suspend_time timestamptz; -- since then nobody of it gets in

-- Role installation_admin is built in for tenant `system` alone; another's user of that role would need
-- a role of that name of the tenant's own.
ALTER TABLE auth.user_account
    ALTER COLUMN custom_role SET EXPRESSION AS (
        CASE
            WHEN role IN ('admin', 'operator', 'analyst', 'viewer', 'api_client') THEN NULL
            WHEN tenant_id = 'system' AND role = 'installation_admin' THEN NULL
            ELSE role
        END
    );
ALTER TABLE auth.role ADD CONSTRAINT role_not_of_the_installation
    CHECK (NOT (tenant_id = 'system' AND id = 'installation_admin'));

-- Operators of the installation list all tenants: what there is, nothing of what is in it.
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
GRANT UPDATE (suspend_time) ON auth.tenant TO twinmesh_auth;
