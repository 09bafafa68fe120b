"""Concurrency tools below every room: shields, threads, life cycles, pauses."""
