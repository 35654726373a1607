"""What a check says, and all of them together."""

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from alight.runtime.errors import InputError

Verdict = Literal["ok", "warning", "problem"]

COLOURS = {"ok": "\033[32m", "warning": "\033[33m", "problem": "\033[31m"}
PLAIN = "\033[0m"


class Finding(NamedTuple):
    """What one check found.

    Attributes:
        verdict: `problem` = something will fail or mislead; `warning` = worth a look.
        subject: what was checked, in a word or two.
        sentence: what was found.
        mend: what to do about it; empty where nothing has to be done.
    """

    verdict: Verdict
    subject: str
    sentence: str
    mend: str = ""


@dataclass(frozen=True)
class Examination:
    """All findings, in the order of the checks."""

    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """1 if there is a problem."""
        return int(any(finding.verdict == "problem" for finding in self.findings))

    def as_data(self) -> dict[str, Any]:
        """For programs."""
        return {"healthy": not self.exit_code, "findings": [finding._asdict() for finding in self.findings]}

    def __str__(self) -> str:
        coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        width = max(len(finding.subject) for finding in self.findings)
        lines = []
        for finding in self.findings:
            verdict = f"{finding.verdict:<9}"
            if coloured:
                verdict = f"{COLOURS[finding.verdict]}{verdict}{PLAIN}"
            lines.append(f"{verdict}{finding.subject:<{width}}  {finding.sentence}")
            if finding.mend:
                lines.append(f"{'':<9}{'':<{width}}  -> {finding.mend}")
        counts = {name: sum(finding.verdict == name for finding in self.findings) for name in ("problem", "warning")}
        summary = ", ".join(f"{count} {name}{'s' if count != 1 else ''}" for name, count in counts.items())
        return "\n".join([*lines, "", f"{len(self.findings)} checks: {summary}."])


def attempt(subject: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Run a check; one that cannot be carried out to its end is a problem, too."""
    findings: list[Finding] = []
    try:
        findings.extend(check())
    except InputError as error:
        findings.append(Finding("problem", subject, str(error)))
    except Exception as error:  # a broken library must not keep the other checks from their say
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        sentence = f"This could not be checked ({reason})."
        findings.append(Finding("problem", subject, sentence, "Mend the other problems first."))
    return findings
