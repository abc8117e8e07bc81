-- The code of before would let them in from anywhere.
DELETE FROM auth.api_key_former_secret AS secret
USING auth.api_key
WHERE api_key.tenant_id = secret.tenant_id AND api_key.id = secret.key_id
    AND api_key.allowed_addresses <> '{}';
DELETE FROM auth.api_key WHERE allowed_addresses <> '{}';
ALTER TABLE auth.api_key DROP COLUMN allowed_addresses;
