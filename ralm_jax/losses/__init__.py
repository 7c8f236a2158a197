"""Pure functions of arrays: what is minimised, and what is reported of it."""
