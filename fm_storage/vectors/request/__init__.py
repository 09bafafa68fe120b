"""Requests: what an application gives, checked once."""
