"""The store: its calls, and what they do."""
