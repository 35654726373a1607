"""Results of checks."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from alight.runtime.errors import InputError
from alight.runtime.terminal import Colour, paint

Verdict = Literal["ok", "warning", "problem"]

COLOURS: dict[Verdict, Colour] = {"ok": "green", "warning": "yellow", "problem": "red"}


class Finding(NamedTuple):
    """The result of one check.

    Attributes:
        verdict: `problem` = a failure or a wrong result is certain; `warning` = possible.
        subject: what was checked, in a word or two.
        sentence: the result.
        fix: the remedy; empty if none is needed.
    """

    verdict: Verdict
    subject: str
    sentence: str
    fix: str = ""


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
        width = max(len(finding.subject) for finding in self.findings)
        lines = []
        for finding in self.findings:
            verdict = paint(f"{finding.verdict:<9}", COLOURS[finding.verdict], sys.stdout)
            lines.append(f"{verdict}{finding.subject:<{width}}  {finding.sentence}")
            if finding.fix:
                lines.append(f"{'':<9}{'':<{width}}  -> {finding.fix}")
        counts = {name: sum(finding.verdict == name for finding in self.findings) for name in ("problem", "warning")}
        summary = ", ".join(f"{count} {name}{'s' if count != 1 else ''}" for name, count in counts.items())
        return "\n".join([*lines, "", f"{len(self.findings)} checks: {summary}."])


def attempt(subject: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Run a check; an exception becomes a problem."""
    findings: list[Finding] = []
    try:
        findings.extend(check())
    except InputError as error:
        findings.append(Finding("problem", subject, str(error)))
    except Exception as error:  # a broken library must not prevent other checks
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        sentence = f"This could not be checked ({reason})."
        findings.append(Finding("problem", subject, sentence, "Fix the other problems first."))
    return findings
