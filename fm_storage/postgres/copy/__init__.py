"""COPY: records and files."""
