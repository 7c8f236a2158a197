"""Objectives of unlabelled text."""
