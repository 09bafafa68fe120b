"""What an observer sees: spans, metrics, slow statements."""
