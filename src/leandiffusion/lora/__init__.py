"""LoRA adapters: reading their files, what is on, merging them into weights."""
