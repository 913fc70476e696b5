"""`python -m interp_embed.cli` is the command line."""

from interp_embed.cli import main

if __name__ == "__main__":
    main()
