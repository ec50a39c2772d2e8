"""Checkpoint files to networks and back: locate them, check them, read them straight into place, save them."""
