-- The code of before would let them do everything.
DELETE FROM auth.api_key_former_secret AS secret
USING auth.api_key
WHERE api_key.tenant_id = secret.tenant_id AND api_key.id = secret.key_id
    AND (api_key.device_ids <> '{}' OR api_key.gateway_ids <> '{}');
DELETE FROM auth.api_key WHERE device_ids <> '{}' OR gateway_ids <> '{}';
ALTER TABLE auth.api_key DROP COLUMN device_ids, DROP COLUMN gateway_ids;
