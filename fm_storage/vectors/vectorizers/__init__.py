"""Vectorizers: text to vectors."""
