"""Containers of foreign tensors, read without running anything of theirs."""
