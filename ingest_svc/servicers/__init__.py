"""The contract's side of services beside IngestService: each rpc converts, calls, and converts back."""
