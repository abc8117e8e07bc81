DROP FUNCTION telemetry.delete_tenant_rows;
DROP FUNCTION telemetry.close_sql_users;
ALTER POLICY own ON telemetry.sql_user USING (role_name = current_user);
ALTER TABLE telemetry.sql_user DROP COLUMN is_closed;
