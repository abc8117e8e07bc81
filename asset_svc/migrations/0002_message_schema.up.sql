ALTER TABLE asset.device_type ADD COLUMN message_schema jsonb;
COMMENT ON COLUMN asset.device_type.message_schema IS 'How JSON messages are read (MessageSchema); null: flat objects.';

-- Topics carry a device's id alone, so whoever reads messages has to ask for its tenant.
CREATE FUNCTION asset.device_tenants(device_ids text[])
    RETURNS TABLE (id text, tenant_id text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog
    AS $$
        SELECT device.id, device.tenant_id FROM asset.device WHERE device.id = ANY (device_ids)
    $$;
REVOKE EXECUTE ON FUNCTION asset.device_tenants FROM PUBLIC;
GRANT EXECUTE ON FUNCTION asset.device_tenants TO twinmesh_asset;
