"""Recording: from an exception to a durable row."""
