"""`python -m coverart.cli` is the command `coverart`."""

from coverart.cli.main import main

if __name__ == "__main__":
    main()
