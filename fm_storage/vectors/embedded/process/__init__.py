"""The process of the embedded engine; the only place that imports qdrant_edge."""
