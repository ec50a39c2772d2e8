"""How the demo model was made: `python -m tools.train_demo --help`."""
