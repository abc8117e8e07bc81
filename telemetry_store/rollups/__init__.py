"""Rollups: what the samples of a minute, an hour and a day come to."""
