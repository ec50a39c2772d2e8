"""`python -m leandiffusion` is the `leandiffusion` command."""

from .cli.app import main

if __name__ == "__main__":
    main()
