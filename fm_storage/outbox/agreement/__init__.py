"""Agreement: comparing, repairing and rebuilding both stores."""
