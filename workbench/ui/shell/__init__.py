"""Shared by every page: layout, routing, state, backend."""
