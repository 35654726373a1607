"""Studies: many stages, one report."""
