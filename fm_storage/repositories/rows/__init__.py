"""Rows: reading and writing them."""
