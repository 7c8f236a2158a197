"""Exact search on the mesh."""
