"""The whole loop on the user's own Python."""
