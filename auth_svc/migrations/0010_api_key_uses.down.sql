REVOKE UPDATE (last_used_time) ON auth.api_key FROM twinmesh_auth;
ALTER TABLE auth.api_key DROP COLUMN last_used_time;
