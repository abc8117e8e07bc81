ALTER TABLE auth.api_key ADD COLUMN last_used_time timestamptz; -- to the minute
GRANT UPDATE (last_used_time) ON auth.api_key TO twinmesh_auth;
