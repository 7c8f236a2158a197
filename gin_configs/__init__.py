"""Gin configurations, installed as package data."""
