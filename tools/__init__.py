"""Build-time scripts: nothing here runs in a service."""
