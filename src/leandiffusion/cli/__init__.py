"""The `leandiffusion` command. `app` declares it; each command's work is a file of its own, imported when it runs."""
