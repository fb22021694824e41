"""`python -m torchkeep`: the command line."""

from torchkeep.cli.app import main

if __name__ == "__main__":
    main()
