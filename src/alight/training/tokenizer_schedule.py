"""The phases of tokenizer training: the steps of each, and the weights that hold in it.

The released tokenizer was trained in three, each with its own alignment weight, margins and discriminator start.
A schedule without phases is a single one.
"""

from dataclasses import dataclass

from alight.config import AlignmentConfig, OptimizerConfig, ReconstructionConfig, TrainTokenizerConfig
from alight.training.optimizer import learning_rate


@dataclass(frozen=True)
class TokenizerPhase:
    """One phase of the schedule.

    Attributes:
        start: its first step, counted from 0 over the whole run.
        stop: the step after its last.
        alignment, reconstruction, optimizer: what holds in it.
        restart: it begins with a new discriminator and empty optimizers.
    """

    start: int
    stop: int
    alignment: AlignmentConfig
    reconstruction: ReconstructionConfig
    optimizer: OptimizerConfig
    restart: bool = False

    def learning_rate(self, step: int) -> float:
        """The learning rate at a step of the run; warm-up and decay are those of this phase."""
        return learning_rate(step - self.start, self.stop - self.start, self.optimizer)

    def adversarial_factor(self, step: int) -> float | None:
        """1 from the discriminator's start in this phase on; before it None, and nothing of it is computed."""
        started = step - self.start >= self.reconstruction.adversarial_start_step
        return 1.0 if started and self.reconstruction.adversarial_weight > 0 else None

    def describe(self) -> str:
        """One line for the log."""
        alignment = self.alignment
        aligned = (
            f"alignment weight {alignment.weight:g}, margins (cosine, distance) {alignment.cosine_margin:g}, "
            f"{alignment.distance_margin:g}"
            if alignment.enabled
            else "no alignment"
        )
        start = self.start + self.reconstruction.adversarial_start_step
        discriminator = (
            f", discriminator from step {start:,}"
            if self.reconstruction.adversarial_weight > 0 and start < self.stop
            else ", no discriminator"
        )
        again = ", new discriminator and optimizers" if self.restart else ""
        return f"steps {self.start:,} to {self.stop:,}: {aligned}{discriminator}, lr {self.optimizer.lr:g}{again}"


def tokenizer_schedule(config: TrainTokenizerConfig, num_images: int) -> list[TokenizerPhase]:
    """The phases of a run, back to back; epochs become steps, of at least one."""
    if not config.stages:
        whole = TokenizerPhase(0, config.training.steps, config.alignment, config.reconstruction, config.optimizer)
        return [whole]
    schedule: list[TokenizerPhase] = []
    for phase in config.stages:
        epochs = phase.epochs or 0.0
        steps = phase.steps or max(round(epochs * num_images / config.training.global_batch_size), 1)
        start = schedule[-1].stop if schedule else 0
        alignment = {
            "weight": phase.alignment_weight,
            "cosine_margin": phase.cosine_margin,
            "distance_margin": phase.distance_margin,
        }
        schedule.append(
            TokenizerPhase(
                start,
                start + steps,
                config.alignment.model_copy(update=_given(alignment)),
                config.reconstruction.model_copy(
                    update=_given({"adversarial_start_step": phase.adversarial_start_step})
                ),
                config.optimizer.model_copy(update=_given({"lr": phase.lr})),
                phase.restart,
            )
        )
    return schedule


def phase_at(schedule: list[TokenizerPhase], step: int) -> TokenizerPhase:
    """The phase that a step belongs to."""
    return next(phase for phase in schedule if step < phase.stop)


def _given(values: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}
