"""Data types, settings and keys; standard library only."""
