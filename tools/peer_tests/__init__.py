"""Runs diffusers' own test files on this library's classes: `make peer-tests DIFFUSERS=/path/to/a/checkout`.

None of those files is part of this project: they are copied from the checkout into a temporary folder for the run.
"""
