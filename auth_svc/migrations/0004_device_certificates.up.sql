-- What was issued to devices; the private keys are the devices' own.
CREATE TABLE auth.device_certificate (
    tenant_id text COLLATE "C" NOT NULL REFERENCES auth.tenant,
    id text COLLATE "C" NOT NULL CHECK (id ~ '^[0-9a-f]{1,40}$'), -- serial number, unique in the installation
    device_id text COLLATE "C" NOT NULL,
    uri text NOT NULL,                     -- the name in it
    chain text NOT NULL,                   -- it and the issuing CA's, PEM
    fingerprint bytea NOT NULL CHECK (octet_length(fingerprint) = 32), -- SHA-256 of it, DER
    renewed_from text COLLATE "C",
    creator text NOT NULL,
    create_time timestamptz NOT NULL,
    expire_time timestamptz NOT NULL,
    revoke_time timestamptz,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, renewed_from) REFERENCES auth.device_certificate
);
CREATE INDEX device_certificate_by_device ON auth.device_certificate (tenant_id, device_id, id);
CREATE INDEX device_certificate_by_origin ON auth.device_certificate (tenant_id, renewed_from)
    WHERE renewed_from IS NOT NULL;

ALTER TABLE auth.device_certificate ENABLE ROW LEVEL SECURITY;
ALTER TABLE auth.device_certificate FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON auth.device_certificate
    USING (tenant_id = nullif(current_setting('twinmesh.tenant', true), ''));

-- The CRL is one for the installation: serial numbers and times, without their tenants.
CREATE FUNCTION auth.device_certificates_on_crl()
    RETURNS TABLE (id text, revoke_time timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog
    AS $$
        SELECT device_certificate.id, device_certificate.revoke_time
        FROM auth.device_certificate
        WHERE device_certificate.revoke_time IS NOT NULL
            AND device_certificate.expire_time > clock_timestamp()
    $$;
REVOKE EXECUTE ON FUNCTION auth.device_certificates_on_crl FROM PUBLIC;

GRANT SELECT, INSERT, UPDATE (revoke_time) ON auth.device_certificate TO twinmesh_auth;
GRANT EXECUTE ON FUNCTION auth.device_certificates_on_crl TO twinmesh_auth;
