DROP FUNCTION auth.tenants_after;
-- The code of before knows neither this role nor suspension.
DELETE FROM auth.user_account WHERE tenant_id = 'system' AND role = 'installation_admin';
ALTER TABLE auth.user_account
    ALTER COLUMN custom_role SET EXPRESSION AS (
        CASE WHEN role IN ('admin', 'operator', 'analyst', 'viewer', 'api_client') THEN NULL ELSE role END
    );
ALTER TABLE auth.role DROP CONSTRAINT role_not_of_the_installation;
DO $$
BEGIN
    IF EXISTS (SELECT FROM auth.tenant WHERE suspend_time IS NOT NULL) THEN
        RAISE EXCEPTION 'tenants are suspended, and the code of before would let them in: resume them first';
    END IF;
END
$$;
ALTER TABLE auth.tenant DROP COLUMN suspend_time;
