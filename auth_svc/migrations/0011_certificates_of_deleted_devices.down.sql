DROP TABLE auth.deleted_devices_read;
ALTER TABLE auth.device_certificate DROP COLUMN device_create_time;
