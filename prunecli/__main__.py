"""Run the command line as `python -m prunecli`."""

from prunecli.cli.main import main

if __name__ == "__main__":
    main()
