ALTER TABLE asset.device_type ADD COLUMN quality jsonb;
COMMENT ON COLUMN asset.device_type.quality IS 'How the quality of samples is judged (QualityRules); null: by default.';
