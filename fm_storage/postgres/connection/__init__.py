"""One connection: its entry, verbs, statements and transactions."""
