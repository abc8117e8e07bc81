DROP FUNCTION auth.drop_audit_days(integer);
DROP FUNCTION auth.ensure_audit_days(integer);
DROP TABLE auth.audit_event;
