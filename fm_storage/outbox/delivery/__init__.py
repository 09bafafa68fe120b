"""Delivery: from the queue to the vector store."""
