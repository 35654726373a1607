"""`python -m alight`."""

from alight.cli import main

main()
