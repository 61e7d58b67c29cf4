"""`python -m gworker`, the same as the `gworker` command."""

from gworker.cli.main import main

if __name__ == "__main__":
    main()
