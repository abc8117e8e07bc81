ALTER TABLE auth.address_failures
    DROP CONSTRAINT address_failures_secret_check,
    ADD CONSTRAINT address_failures_secret_check
        CHECK (secret IN ('password', 'refresh_token', 'api_key', 'subject_token'));
