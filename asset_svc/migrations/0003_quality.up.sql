ALTER TABLE asset.device_type ADD COLUMN quality jsonb, ADD COLUMN joint_anomaly jsonb;
COMMENT ON COLUMN asset.device_type.quality IS 'How the quality of samples is judged (QualityRules); null: by default.';
COMMENT ON COLUMN asset.device_type.joint_anomaly IS
    'Which metrics are looked at together (JointAnomalyRules); null: none are.';
