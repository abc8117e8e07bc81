-- SQL users of a suspended tenant read nothing, and what a deleted tenant had is deleted (docs/adr/0017).

ALTER TABLE telemetry.sql_user ADD COLUMN is_closed boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN telemetry.sql_user.is_closed IS 'Whether its tenant is suspended or deleted: then it sees nothing.';
ALTER POLICY own ON telemetry.sql_user USING (role_name = current_user AND NOT is_closed);

-- Only who has a role's rights may end its connections and remove what it owns.
DO $$
DECLARE
    member record;
BEGIN
    FOR member IN SELECT role_name FROM telemetry.sql_user LOOP
        EXECUTE format('GRANT %I TO CURRENT_USER', member.role_name);
    END LOOP;
END
$$;

CREATE FUNCTION telemetry.close_sql_users(closed text[]) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog
    AS $$
BEGIN
    UPDATE telemetry.sql_user SET is_closed = NOT is_closed
    WHERE is_closed <> (tenant_id = ANY (closed));
    -- Also those who read before the last call's change was there to be seen.
    PERFORM pg_terminate_backend(activity.pid)
    FROM pg_stat_activity AS activity
    JOIN telemetry.sql_user AS person ON person.role_name = activity.usename
    WHERE person.is_closed;
    RETURN (SELECT count(*) FROM telemetry.sql_user WHERE is_closed);
END
$$;
COMMENT ON FUNCTION telemetry.close_sql_users IS
    'Shows SQL users of these tenants nothing, and those of all others theirs; ends connections of the former.';

CREATE FUNCTION telemetry.delete_tenant_rows(deleted text, most integer) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog
    AS $$
DECLARE
    member record;
    leaf regclass;
    removed bigint;
    total bigint := 0;
BEGIN
    FOR member IN SELECT role_name FROM telemetry.sql_user WHERE tenant_id = deleted LOOP
        EXECUTE format('DROP OWNED BY %I', member.role_name);
        EXECUTE format('DROP ROLE %I', member.role_name);
        DELETE FROM telemetry.sql_user WHERE role_name = member.role_name;
        total := total + 1;
    END LOOP;
    -- Whatever has rows of tenants, also what later migrations add; archive objects are more than their rows.
    FOR leaf IN
        SELECT class.oid
        FROM pg_class AS class
        JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
        JOIN pg_attribute AS attribute ON attribute.attrelid = class.oid AND attribute.attname = 'tenant_id'
        WHERE namespace.nspname = 'telemetry' AND class.relkind = 'r'
          AND class.relname NOT IN ('sql_user', 'archive_object')
        ORDER BY class.oid
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
COMMENT ON FUNCTION telemetry.delete_tenant_rows IS
    'Deletes so many rows of a deleted tenant, and its SQL users; returns how many that were. Ids are never given again.';

REVOKE EXECUTE ON FUNCTION telemetry.close_sql_users, telemetry.delete_tenant_rows FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.close_sql_users, telemetry.delete_tenant_rows TO twinmesh_maintenance;
