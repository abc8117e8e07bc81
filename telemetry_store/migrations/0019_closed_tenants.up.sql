-- SQL users of a suspended tenant read nothing, and what a deleted tenant had is deleted (docs/adr/0017).

ALTER TABLE telemetry.sql_user ADD COLUMN is_closed boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN telemetry.sql_user.is_closed IS 'Whether its tenant is suspended or deleted: then it sees nothing.';
ALTER POLICY own ON telemetry.sql_user USING (role_name = current_user AND NOT is_closed);

-- Only who has a role's rights may end its connections and remove what it owns. A restored database may name
-- roles that its new server does not have.
DO $$
DECLARE
    member record;
BEGIN
    FOR member IN
        SELECT role_name FROM telemetry.sql_user JOIN pg_roles ON rolname = role_name
    LOOP
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
    -- Statistics know nothing of what was deleted a moment ago, and would have all that is dead read again.
    SET enable_seqscan = off
    AS $$
DECLARE
    member record;
    leaf record;
    page integer[];
    removed bigint;
    total bigint := 0;
BEGIN
    FOR member IN
        SELECT role_name, rolname IS NOT NULL AS is_there
        FROM telemetry.sql_user LEFT JOIN pg_roles ON rolname = role_name
        WHERE tenant_id = deleted
    LOOP
        IF member.is_there THEN
            EXECUTE format('DROP OWNED BY %I', member.role_name);
            EXECUTE format('DROP ROLE %I', member.role_name);
        END IF;
        DELETE FROM telemetry.sql_user WHERE role_name = member.role_name;
        total := total + 1;
    END LOOP;
    -- Samples are found by their series only, some series at a time: their indexes do not begin with the tenant.
    page := ARRAY (
        SELECT series_id FROM telemetry.series WHERE tenant_id = deleted ORDER BY series_id LIMIT most
    );
    -- Whatever has rows of tenants, also what later migrations add; archive objects are more than their rows.
    -- What is sealed meanwhile goes from hot days to sealed months, and is met there.
    FOR leaf IN
        SELECT class.oid::regclass AS name, EXISTS (
            SELECT FROM pg_attribute AS series
            WHERE series.attrelid = class.oid AND series.attname = 'series_id'
        ) AS has_series
        FROM pg_class AS class
        JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
        JOIN pg_attribute AS attribute ON attribute.attrelid = class.oid AND attribute.attname = 'tenant_id'
        WHERE namespace.nspname = 'telemetry' AND class.relkind = 'r'
          AND class.relname NOT IN ('sql_user', 'archive_object', 'series')
        ORDER BY starts_with(class.relname, 'sealed_segment'), class.oid
    LOOP
        EXIT WHEN total >= most;
        EXECUTE format(
            'DELETE FROM %s WHERE ctid = ANY (ARRAY (SELECT ctid FROM %s WHERE tenant_id = $1 %s LIMIT $2))',
            leaf.name, leaf.name, CASE WHEN leaf.has_series THEN 'AND series_id = ANY ($3)' ELSE '' END
        ) USING deleted, most - total, page;
        GET DIAGNOSTICS removed = ROW_COUNT;
        total := total + removed;
    END LOOP;
    -- Series go last: without them nobody knows of what kind samples are, nor finds them to delete them.
    DELETE FROM telemetry.series
    WHERE tenant_id = deleted AND series_id = ANY (page[:greatest(most - total, 0)]);
    GET DIAGNOSTICS removed = ROW_COUNT;
    total := total + removed;
    RETURN total;
END
$$;
COMMENT ON FUNCTION telemetry.delete_tenant_rows IS
    'Deletes so many rows of a deleted tenant, and its SQL users; returns how many that were. Ids are never given again.';

REVOKE EXECUTE ON FUNCTION telemetry.close_sql_users, telemetry.delete_tenant_rows FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.close_sql_users, telemetry.delete_tenant_rows TO twinmesh_maintenance;
