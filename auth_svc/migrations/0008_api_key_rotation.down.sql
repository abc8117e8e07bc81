DROP FUNCTION auth.tenants_with_ended_secrets;
DROP TABLE auth.api_key_former_secret;
REVOKE UPDATE (hash, generation) ON auth.api_key FROM twinmesh_auth;
ALTER TABLE auth.api_key DROP COLUMN generation;
