"""Warns of a discriminator whose accuracy has been one-sided for long."""

from collections.abc import Mapping

from alight.runtime.console import log

WINS, LOSES = 0.98, 0.52  # accuracy over real and reconstructed patches; balanced training lies between
ONE_SIDED_STEPS = 1_000  # steps after which a one-sided accuracy is reported


class DiscriminatorWatch:
    """Warns once per spell in which the discriminator is always right, or no better than a coin."""

    def __init__(self) -> None:
        self._since: dict[str, int] = {}
        self._warned: set[str] = set()

    def __call__(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take in a line of the training log."""
        accuracy = scalars.get("discriminator_accuracy")
        if accuracy is None:
            return
        self._follow(
            "wins",
            accuracy > WINS,
            step,
            "it tells every reconstruction from its image, and its gradient teaches the decoder little. Lower "
            "reconstruction.adversarial_weight, or start it later",
        )
        self._follow(
            "loses",
            accuracy < LOSES,
            step,
            "it tells reconstructions from images no better than a coin, so the adversarial term is noise. Raise "
            "optimizer.lr, or check that images reach it undamaged",
        )

    def _follow(self, outcome: str, holds: bool, step: int, advice: str) -> None:
        if not holds:
            self._since.pop(outcome, None)
            self._warned.discard(outcome)
            return
        since = self._since.setdefault(outcome, step)
        if step - since >= ONE_SIDED_STEPS and outcome not in self._warned:
            self._warned.add(outcome)
            log.warning("The discriminator %s since step %d: %s.", outcome, since, advice)
