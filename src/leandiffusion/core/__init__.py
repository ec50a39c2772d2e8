"""What every room shares: the error tree, configs, the registry, units. Imports nothing of ours and no torch."""
