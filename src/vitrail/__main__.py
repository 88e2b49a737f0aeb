"""`python -m vitrail` is the `vitrail` command."""

from .cli.main import run

if __name__ == "__main__":
    run()
