"""The embedded engine, as its client sees it."""
