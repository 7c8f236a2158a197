"""Vocabularies, templates and tokenisation."""
