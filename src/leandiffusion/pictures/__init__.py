"""Finished pictures: the text they carry, the files they go to, and how they look in a terminal."""
