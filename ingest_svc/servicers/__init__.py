"""Servicers of the smaller services; IngestService's is ingest_svc.servicer."""
