DROP FUNCTION auth.device_certificates_on_crl;
DROP TABLE auth.device_certificate;
