DROP FUNCTION auth.device_certificates_on_crl;
DROP FUNCTION auth.device_certificates_revoked_within;
DROP TABLE auth.device_certificate;
