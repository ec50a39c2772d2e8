"""What a run took: seconds per stage, peak memory, and the machine it ran on. Nothing is read at import."""
