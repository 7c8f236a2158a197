"""Checkpoints x tasks x indexes, each cell once."""
