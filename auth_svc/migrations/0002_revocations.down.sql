CREATE INDEX api_key_by_revoke_time ON auth.api_key (revoke_time) WHERE revoke_time IS NOT NULL;
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
GRANT EXECUTE ON FUNCTION auth.api_keys_revoked_within TO twinmesh_auth;
DROP FUNCTION auth.revocations_after;
DROP TABLE auth.revocation;
