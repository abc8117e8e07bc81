DROP FUNCTION asset.device_tenants;
ALTER TABLE asset.device_type DROP COLUMN message_schema;
