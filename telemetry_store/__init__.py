"""The shared telemetry store: schema `telemetry`, its writer, readers and maintenance.

ingest_svc writes through it, twin_svc reads through it, the maintenance worker keeps it.
"""
