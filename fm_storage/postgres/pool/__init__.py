"""The pool: scheduling, growth, maintenance, closing, listening."""
