"""Where samples lie as they age: hot segments, sealed segments, the archive (docs/adr/0014)."""
