"""`python -m benchmarks ...` is `alight bench ...`."""

import sys

from alight.cli import main

main(["bench", *sys.argv[1:]])
