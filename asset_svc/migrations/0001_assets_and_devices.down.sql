DROP TABLE asset.device;
DROP TABLE asset.asset;
DROP TABLE asset.asset_type;
DROP TABLE asset.device_type;
DROP SCHEMA asset;
