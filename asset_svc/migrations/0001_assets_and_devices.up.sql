CREATE SCHEMA asset;
GRANT USAGE ON SCHEMA asset TO twinmesh_asset;

-- Ids sort by bytes whatever the database's locale is, so that pages are the same everywhere.
CREATE TABLE asset.device_type (
    tenant_id text NOT NULL,
    id text COLLATE "C" NOT NULL,
    display_name text NOT NULL,
    protocol text NOT NULL CHECK (protocol IN ('unspecified', 'grpc', 'json', 'mqtt')),
    processing_mode text NOT NULL CHECK (processing_mode IN ('direct', 'demultiplex', 'chunked')),
    metrics jsonb NOT NULL,
    heartbeat interval,
    version bigint NOT NULL DEFAULT 1,
    create_time timestamptz NOT NULL DEFAULT now(),
    update_time timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT device_type_pkey PRIMARY KEY (tenant_id, id)
);

CREATE TABLE asset.asset_type (
    tenant_id text NOT NULL,
    id text COLLATE "C" NOT NULL,
    display_name text NOT NULL,
    health_method text CHECK (health_method IN ('unspecified', 'weighted', 'threshold')),
    health_inputs jsonb NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    create_time timestamptz NOT NULL DEFAULT now(),
    update_time timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT asset_type_pkey PRIMARY KEY (tenant_id, id)
);

CREATE TABLE asset.asset (
    tenant_id text NOT NULL,
    id text COLLATE "C" NOT NULL,
    display_name text NOT NULL,
    asset_type_id text COLLATE "C" NOT NULL,
    parent_id text COLLATE "C",
    latitude double precision,
    longitude double precision,
    altitude double precision,
    address text NOT NULL,
    tags text[] NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    create_time timestamptz NOT NULL DEFAULT now(),
    update_time timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT asset_pkey PRIMARY KEY (tenant_id, id),
    CONSTRAINT asset_asset_type_fkey FOREIGN KEY (tenant_id, asset_type_id)
        REFERENCES asset.asset_type (tenant_id, id),
    CONSTRAINT asset_parent_fkey FOREIGN KEY (tenant_id, parent_id) REFERENCES asset.asset (tenant_id, id),
    CONSTRAINT asset_location_check CHECK (
        (latitude IS NULL) = (longitude IS NULL) AND (altitude IS NULL OR latitude IS NOT NULL)
    )
);
CREATE INDEX asset_by_type ON asset.asset (tenant_id, asset_type_id, id);
CREATE INDEX asset_by_parent ON asset.asset (tenant_id, parent_id, id) WHERE parent_id IS NOT NULL;

CREATE TABLE asset.device (
    tenant_id text NOT NULL,
    id text COLLATE "C" NOT NULL,
    display_name text NOT NULL,
    device_type_id text COLLATE "C" NOT NULL,
    role text NOT NULL CHECK (role IN ('endpoint', 'gateway', 'gateway_chunked', 'child')),
    parent_id text COLLATE "C",
    logical_id text NOT NULL,
    status text NOT NULL CHECK (status IN ('active', 'disabled')),
    network_metadata jsonb NOT NULL,
    tags text[] NOT NULL,
    asset_id text COLLATE "C",
    version bigint NOT NULL DEFAULT 1,
    create_time timestamptz NOT NULL DEFAULT now(),
    update_time timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT device_pkey PRIMARY KEY (tenant_id, id),
    -- Topics, subjects and paths carry the device id alone, so no two tenants may share one.
    CONSTRAINT device_id_key UNIQUE (id),
    CONSTRAINT device_device_type_fkey FOREIGN KEY (tenant_id, device_type_id)
        REFERENCES asset.device_type (tenant_id, id),
    CONSTRAINT device_parent_fkey FOREIGN KEY (tenant_id, parent_id) REFERENCES asset.device (tenant_id, id),
    CONSTRAINT device_asset_fkey FOREIGN KEY (tenant_id, asset_id) REFERENCES asset.asset (tenant_id, id),
    CONSTRAINT device_parent_check CHECK ((role = 'child') = (parent_id IS NOT NULL))
);
CREATE INDEX device_by_type ON asset.device (tenant_id, device_type_id, id);
CREATE INDEX device_by_parent ON asset.device (tenant_id, parent_id, id) WHERE parent_id IS NOT NULL;
CREATE INDEX device_by_asset ON asset.device (tenant_id, asset_id, id) WHERE asset_id IS NOT NULL;

-- Without a tenant set, nobody sees or writes anything, the tables' owner included.
ALTER TABLE asset.device_type ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE asset.asset_type ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE asset.asset ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE asset.device ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

CREATE POLICY tenant ON asset.device_type
    USING (tenant_id = nullif(current_setting('twinmesh.tenant', true), ''));
CREATE POLICY tenant ON asset.asset_type
    USING (tenant_id = nullif(current_setting('twinmesh.tenant', true), ''));
CREATE POLICY tenant ON asset.asset
    USING (tenant_id = nullif(current_setting('twinmesh.tenant', true), ''));
CREATE POLICY tenant ON asset.device
    USING (tenant_id = nullif(current_setting('twinmesh.tenant', true), ''));

GRANT SELECT, INSERT, UPDATE, DELETE
    ON asset.device_type, asset.asset_type, asset.asset, asset.device TO twinmesh_asset;
