"""Measuring: a plan, its rounds, and the process that draws one row."""
