ALTER TABLE asset.device_type DROP COLUMN joint_anomaly, DROP COLUMN quality;
