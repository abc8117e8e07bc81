"""The contract's side of twin_svc, beside `twin_svc/servicer.py`: one module for each service."""
