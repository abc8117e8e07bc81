DROP INDEX asset.device_by_logical_id;
ALTER TABLE asset.device_type
    DROP COLUMN unknown_children,
    DROP COLUMN child_device_type_id,
    DROP COLUMN message_mode;
