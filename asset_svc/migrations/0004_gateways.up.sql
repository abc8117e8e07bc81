ALTER TABLE asset.device_type
    ADD COLUMN unknown_children text NOT NULL DEFAULT 'unspecified'
        CHECK (unknown_children IN ('unspecified', 'refuse', 'register')),
    ADD COLUMN child_device_type_id text COLLATE "C",
    ADD COLUMN message_mode text NOT NULL DEFAULT 'unspecified'
        CHECK (message_mode IN ('unspecified', 'partial', 'all_or_nothing')),
    ADD CONSTRAINT device_type_child_type_fkey FOREIGN KEY (tenant_id, child_device_type_id)
        REFERENCES asset.device_type (tenant_id, id);
COMMENT ON COLUMN asset.device_type.child_device_type_id IS 'Type of children that are registered when a gateway speaks of them.';

-- A gateway's names for its children are looked up with every new one that it speaks of.
CREATE INDEX device_by_logical_id ON asset.device (tenant_id, parent_id, logical_id) WHERE parent_id IS NOT NULL;
