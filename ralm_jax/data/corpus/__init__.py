"""Passages on disk, tokenised once."""
