"""Pure functions of arrays: how tokens are chosen."""
