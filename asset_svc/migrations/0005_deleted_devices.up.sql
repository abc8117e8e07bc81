-- Devices that are gone: what others hold of them must end with them, also when a device comes back by that id.
CREATE TABLE asset.deleted_device (
    tenant_id text COLLATE "C" NOT NULL,
    -- In the order of commits: whoever inserts holds a lock until then.
    number bigint GENERATED ALWAYS AS IDENTITY,
    id text COLLATE "C" NOT NULL,
    create_time timestamptz NOT NULL,   -- of the device, which tells it from others of its id
    delete_time timestamptz NOT NULL,
    CONSTRAINT deleted_device_pkey PRIMARY KEY (tenant_id, number)
);
CREATE INDEX deleted_device_by_number ON asset.deleted_device (number);

ALTER TABLE asset.deleted_device ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON asset.deleted_device
    USING (tenant_id = nullif(current_setting('twinmesh.tenant', true), ''));

-- Who ends what belongs to them does so for all tenants.
CREATE FUNCTION asset.deleted_devices_after(after bigint, most integer)
    RETURNS TABLE (number bigint, tenant_id text, id text, create_time timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog
    AS $$
        SELECT deleted_device.number, deleted_device.tenant_id, deleted_device.id, deleted_device.create_time
        FROM asset.deleted_device
        WHERE deleted_device.number > after
        ORDER BY deleted_device.number
        LIMIT most
    $$;
REVOKE EXECUTE ON FUNCTION asset.deleted_devices_after FROM PUBLIC;
GRANT EXECUTE ON FUNCTION asset.deleted_devices_after TO twinmesh_asset;
GRANT SELECT, INSERT, DELETE ON asset.deleted_device TO twinmesh_asset;
