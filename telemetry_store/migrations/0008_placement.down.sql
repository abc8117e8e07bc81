DROP TABLE telemetry.placement;
