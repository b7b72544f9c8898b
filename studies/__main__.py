"""Run a study: `python -m studies --help`."""

from studies.command import main

if __name__ == "__main__":
    main()
