"""Flags, one call, and what is printed; one file a command."""
