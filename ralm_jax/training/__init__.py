"""Arrays to arrays on a mesh; imports no retrieval."""
