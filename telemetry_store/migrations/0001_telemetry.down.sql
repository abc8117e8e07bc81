-- Roles belong to the cluster and stay.
DROP SCHEMA telemetry CASCADE;
