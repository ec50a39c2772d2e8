"""Tasks, one per file: what is given besides a prompt, and what that changes in a run."""
