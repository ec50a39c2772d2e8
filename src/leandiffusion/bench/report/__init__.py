"""Records as tables, plots and comparisons. Needs no torch."""
