-- A certificate is of one device, not of whichever has its id later. What was issued before has none: it is
-- of the device that there was then.
ALTER TABLE auth.device_certificate ADD COLUMN device_create_time timestamptz;

-- How far asset_svc's list of deleted devices was read: one row.
CREATE TABLE auth.deleted_devices_read (
    number bigint NOT NULL
);
INSERT INTO auth.deleted_devices_read (number) VALUES (0);
GRANT SELECT, UPDATE ON auth.deleted_devices_read TO twinmesh_auth;
