"""Questions to the catalogue: groups, similar entries, analysis."""
