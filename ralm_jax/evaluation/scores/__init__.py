"""What answers are scored by, a file a family."""
