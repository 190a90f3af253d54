"""`python -m kdnas`: the command line."""

from kdnas.cli.main import run

if __name__ == "__main__":
    run()
