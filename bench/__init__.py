"""Repeatable load: `twinmesh bench NAME`. Results are ratios of things measured in one run."""
