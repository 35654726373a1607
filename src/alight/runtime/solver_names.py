"""The names of the solvers, for those who must know them before torch is there.

`alight.flow` owns the methods; a test holds its list against this one.
"""

import difflib

from alight.runtime.errors import InputError

ODE_SOLVERS = (
    *("euler", "midpoint", "heun2", "heun3", "rk4", "rk4_classic", "heun", "ab2"),
    *("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", "explicit_adams", "implicit_adams"),
)
SDE_SOLVERS = ("sde_euler", "sde_heun")


def require_solver(name: str) -> None:
    """Refuse a solver that does not exist.

    Raises:
        InputError: names the nearest and lists all.
    """
    known = (*ODE_SOLVERS, *SDE_SOLVERS)
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
        raise InputError(f"There is no solver '{name}'.{hint} Known are {', '.join(known)}.")
