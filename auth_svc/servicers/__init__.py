"""Rpcs to rules and back."""
