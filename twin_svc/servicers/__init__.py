"""Servicers of twin_svc's further services: one module per contract."""
