"""Flax modules and pure functions of arrays."""
