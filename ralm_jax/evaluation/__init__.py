"""One question to one record."""
