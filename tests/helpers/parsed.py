"""The options of all commands and the shipped recipes, read once when this is imported, and the embedded digits.

They stay in caches, so that a process which begins with them is ready at once.
"""

from alight.cli import parse
from alight.config.commands import COMMANDS
from alight.data.embedded import Digits
from alight.plan.inputs import shipped_jobs

for name in COMMANDS:
    parse(name, [])
shipped_jobs()
Digits()
