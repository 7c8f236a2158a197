"""Foreign weights and indexes in, ours out."""
