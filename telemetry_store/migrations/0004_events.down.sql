DROP TABLE telemetry.event;
