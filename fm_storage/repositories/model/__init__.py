"""Models: declarations, entities and types of columns."""
