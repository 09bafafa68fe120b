"""Queries: filters, order, pages and their SQL."""
