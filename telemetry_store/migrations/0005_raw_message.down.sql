DROP FUNCTION telemetry.raw_tenants();
DROP FUNCTION telemetry.expire_raw_messages(text, interval, integer);
DROP FUNCTION telemetry.drop_raw_days(interval);
DROP FUNCTION telemetry.ensure_raw_days(integer);
DROP TABLE telemetry.raw_message;
DROP TABLE telemetry.raw_device_set;
