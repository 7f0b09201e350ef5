"""`python -m scanner`: the command `rmtscan`, for an environment whose scripts are not on the path."""

from scanner.cli.main import main

if __name__ == "__main__":
    main()
