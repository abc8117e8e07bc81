DROP FUNCTION auth.api_keys_revoked_within;
DROP TABLE auth.signing_key;
DROP TABLE auth.api_key;
DROP TABLE auth.refresh_token;
DROP TABLE auth.session;
DROP TABLE auth.user_account;
DROP TABLE auth.tenant;
DROP SCHEMA auth;
