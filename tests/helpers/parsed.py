"""The options of all commands, parsed once when this is imported: what is learnt of them stays in caches."""

from alight.cli import parse
from alight.config.commands import COMMANDS

for name in COMMANDS:
    parse(name, [])
