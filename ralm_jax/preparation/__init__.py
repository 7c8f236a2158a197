"""Published files to question files."""
