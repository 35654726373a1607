"""The parts of a staged tokenizer training, resolved: when each begins, and which weights hold in it.

The released tokenizer was trained in three parts, each with its own alignment weight, margins and discriminator start.
A schedule without parts is a single part.
"""

from dataclasses import dataclass

from alight.config import AlignmentConfig, OptimizerConfig, ReconstructionConfig, TrainTokenizerConfig
from alight.training.optimizer import learning_rate


@dataclass(frozen=True)
class TokenizerStage:
    """One part of the schedule.

    Attributes:
        start: its first step, counted from 0 over the whole run.
        stop: the step after its last.
        alignment, reconstruction, optimizer: what holds in it.
        restart: whether it begins with a new discriminator and empty optimizers.
    """

    start: int
    stop: int
    alignment: AlignmentConfig
    reconstruction: ReconstructionConfig
    optimizer: OptimizerConfig
    restart: bool = False

    def learning_rate(self, step: int) -> float:
        """The learning rate at a step of the run; warm-up and decay are those of this part."""
        return learning_rate(step - self.start, self.stop - self.start, self.optimizer)

    def adversarial_factor(self, step: int) -> float | None:
        """1 from the discriminator's start in this part on, before it None: nothing of it is computed."""
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
        game = (
            f", discriminator from step {start:,}"
            if self.reconstruction.adversarial_weight > 0 and start < self.stop
            else ", no discriminator"
        )
        again = ", new discriminator and optimizers" if self.restart else ""
        return f"steps {self.start:,} to {self.stop:,}: {aligned}{game}, lr {self.optimizer.lr:g}{again}"


def tokenizer_schedule(config: TrainTokenizerConfig, num_images: int) -> list[TokenizerStage]:
    """The parts of a run, back to back; epochs become steps, of at least one.

    Args:
        config: of the job.
        num_images: images per epoch.
    """
    if not config.stages:
        whole = TokenizerStage(0, config.training.steps, config.alignment, config.reconstruction, config.optimizer)
        return [whole]
    schedule: list[TokenizerStage] = []
    for stage in config.stages:
        epochs = stage.epochs or 0.0
        steps = stage.steps or max(round(epochs * num_images / config.training.global_batch_size), 1)
        start = schedule[-1].stop if schedule else 0
        alignment = {
            "weight": stage.alignment_weight,
            "cosine_margin": stage.cosine_margin,
            "distance_margin": stage.distance_margin,
        }
        schedule.append(
            TokenizerStage(
                start,
                start + steps,
                config.alignment.model_copy(update=_given(alignment)),
                config.reconstruction.model_copy(
                    update=_given({"adversarial_start_step": stage.adversarial_start_step})
                ),
                config.optimizer.model_copy(update=_given({"lr": stage.lr})),
                stage.restart,
            )
        )
    return schedule


def stage_at(schedule: list[TokenizerStage], step: int) -> TokenizerStage:
    """The part that a step belongs to."""
    return next(stage for stage in schedule if step < stage.stop)


def _given(values: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}
