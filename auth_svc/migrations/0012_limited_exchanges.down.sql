DELETE FROM auth.address_failures WHERE secret IN ('api_key', 'subject_token');
ALTER TABLE auth.address_failures
    DROP CONSTRAINT address_failures_secret_check,
    ADD CONSTRAINT address_failures_secret_check CHECK (secret IN ('password', 'refresh_token'));
