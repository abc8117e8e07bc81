REVOKE UPDATE (create_time) ON auth.tenant FROM twinmesh_auth;
REVOKE DELETE,
    UPDATE (display_name, role, disabled, password_hash, one_time_expire_time, version, update_time)
    ON auth.user_account FROM twinmesh_auth;
-- The code of before would let them in, with another role's permissions or none of the limits.
DELETE FROM auth.user_account
WHERE disabled OR custom_role IS NOT NULL OR one_time_expire_time IS NOT NULL;
ALTER TABLE auth.user_account
    DROP COLUMN custom_role,
    DROP COLUMN display_name,
    DROP COLUMN disabled,
    DROP COLUMN one_time_expire_time,
    DROP COLUMN version,
    DROP COLUMN update_time,
    ADD CONSTRAINT user_account_role_check
        CHECK (role IN ('admin', 'operator', 'analyst', 'viewer', 'api_client'));
DROP TABLE auth.role;
