"""Questions, their files and their choices."""
