DROP FUNCTION asset.deleted_devices_after;
DROP TABLE asset.deleted_device;
