"""The offload engine: weights lie on the tier below and travel through fixed memory on the compute device."""
