"""The maintenance worker: keeps the telemetry store able to take samples and to be read."""
