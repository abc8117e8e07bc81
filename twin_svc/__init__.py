"""Answers for the present state of devices and for their past."""
