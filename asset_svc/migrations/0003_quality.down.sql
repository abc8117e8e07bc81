ALTER TABLE asset.device_type DROP COLUMN quality;
