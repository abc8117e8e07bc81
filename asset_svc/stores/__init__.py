"""Schema `asset` in SQL: one module per resource, and what they share."""
