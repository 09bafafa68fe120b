"""Concurrency tools below every room.

* ``shield``: work that finishes although its caller is cancelled
* ``threads``: a blocking function in a thread of its own
* ``lifecycle``: opening and closing, and the process and loop of an object
* ``backoff``: pauses that double, with jitter
* ``pacing``: long computations that let the event loop go first
"""
