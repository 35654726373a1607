"""Times on the path: random ones for training, grids for sampling, and the warp that both share."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from alight.flow.randomness import Generators, standard_normal, uniform
from alight.options import AUTO, TimeDistribution, names_of, require_known
from alight.runtime.errors import InputError

PUBLISHED_GAPS = (0.001, 0.001)  # of UCGM's grid for LightningDiT


def shift_timesteps(t: Tensor, s: float | None) -> Tensor:
    """Warps time, t' = s t / (1 + (s - 1) t), to spend more of it near noise (s < 1) or near data (s > 1).

    The endpoints 0 and 1 stay where they are, and the warp by 1/s undoes the warp by s. In noise time 1 - t, as
    in diffusers and SD3 (arXiv 2403.03206, section 5.3.2), it is the warp by 1/s: the published s = 0.3 is their 3.33.

    Args:
        t: times in [0, 1], any shape.
        s: the timestep shift, > 0; None leaves time as it is.

    Raises:
        InputError: `s` is not positive.
    """
    if s is None:
        return t
    _require_positive(s)
    return s * t / (1 + (s - 1) * t)


def dimension_aware_shift(num_dimensions: int, base_dimensions: int = 4096) -> float:
    """The timestep shift that keeps the signal-to-noise ratio of larger latents where a base size has it.

    The same pixel noise hides less of a signal with more dimensions, so larger latents need more steps near noise. In
    noise time the rule is the warp by sqrt(D / base) (SD3, arXiv 2403.03206, section 5.3.2; RAE, arXiv
    2510.11690); in our time, where t = 1 is data, that is the warp by its inverse. Use it in training and sampling.

    Args:
        num_dimensions: D, the numbers in one latent: channels x height x width.
        base_dimensions: the size whose schedule is taken as right (4096 = 4 x 32 x 32).

    Returns:
        s = sqrt(base / D) for `shift_timesteps`: 0.71 for 32 x 16 x 16 latents.
    """
    if num_dimensions < 1 or base_dimensions < 1:
        raise InputError(f"Dimensions must be positive, but they are {num_dimensions} and {base_dimensions} (base).")
    return math.sqrt(base_dimensions / num_dimensions)


def resolve_shift(shift: float | Literal["auto"] | None, shape: Sequence[int] | None = None) -> float | None:
    """A timestep shift as a number: "auto" is `dimension_aware_shift` of latents of the shape (C, H, W).

    Raises:
        InputError: the shift is "auto" and no shape is given, or it is another word.
    """
    if not isinstance(shift, str):
        return shift
    if shift != AUTO or shape is None:
        raise InputError(
            f"The timestep shift is {shift!r} where a number is needed. Give a number, None for even steps, or 'auto' "
            "together with the shape of the latents."
        )
    return dimension_aware_shift(math.prod(shape))


def sample_timesteps(
    batch: int,
    distribution: TimeDistribution = "logit_normal",
    mean: float = 0.0,
    std: float = 1.0,
    low: float = 0.0,
    high: float = 1.0,
    shift: float | None = None,
    *,
    truncate: tuple[float, float] | None = None,
    noise: Tensor | None = None,
    generator: Generators = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Random training times, one per sample.

    "logit_normal" is the sigmoid of a normal number: most times lie around the middle of the path, where the velocity
    is hardest to predict (SD3, arXiv 2403.03206, section 3.1; LightningDiT, arXiv 2501.01423, section 4).

    Args:
        batch: number of times.
        distribution: "logit_normal" or "uniform".
        mean: of the normal number; positive looks closer to data. Logit-normal only.
        std: of the normal number. Logit-normal only.
        low: times in [0, 1] are mapped linearly to [low, high]; `time_interval` gives what a path needs.
        high: see `low`.
        shift: warp the result with `shift_timesteps`.
        truncate: keep only times in this closed range, by rejection.
        noise: the draws themselves in place of a generator: standard normal (logit-normal) or uniform numbers,
            (batch,), or (rounds, batch) with `truncate`, whose rounds are used in order.
        generator: one for the batch, or one per sample; a CPU generator gives the same times on every device.
        device: of the result.

    Returns:
        (batch,) float32 times.

    Raises:
        InputError: an unknown distribution, a reversed or impossible range, or noise of the wrong shape.
    """
    require_known(distribution, names_of(TimeDistribution), "time distribution")
    _require_range(low, high, "low, high")
    if noise is not None and noise.shape[-1:] != (batch,):
        raise InputError(
            f"The noise for {batch} timesteps must end with {batch} numbers, but it has shape {tuple(noise.shape)}."
        )
    if std <= 0:
        raise InputError(f"The standard deviation of the logit-normal distribution must be positive, but it is {std}.")

    def to_time(draws: Tensor) -> Tensor:
        unit = torch.sigmoid(mean + std * draws) if distribution == "logit_normal" else draws
        return (low + (high - low) * unit).to(torch.float32)

    rounds = noise.reshape(-1, batch) if noise is not None else _drawn_rounds(batch, distribution, generator, device)
    times = map(to_time, rounds)
    t = next(times) if truncate is None else _first_inside(times, truncate, batch)
    return shift_timesteps(t, shift).to(device)


def _drawn_rounds(
    batch: int, distribution: TimeDistribution, generator: Generators, device: torch.device | str
) -> Iterator[Tensor]:
    """Random numbers (batch,) without end, from which the times of a distribution are computed."""
    sampler = standard_normal if distribution == "logit_normal" else uniform
    while True:
        yield sampler((batch,), generator, device)


def _first_inside(rounds: Iterator[Tensor], bounds: tuple[float, float], batch: int, max_rounds: int = 1000) -> Tensor:
    """The first `batch` times that lie inside the bounds, in the order in which they were drawn."""
    _require_range(*bounds, "truncate")
    low, high = bounds
    kept: list[Tensor] = []
    for times in itertools.islice(rounds, max_rounds):
        kept.append(times[(times >= low) & (times <= high)])
        if sum(map(len, kept)) >= batch:
            return torch.cat(kept)[:batch]
    raise InputError(
        f"Only {sum(map(len, kept))} of {batch} timesteps fell into [{low}, {high}]. "
        "Widen the range, or choose a distribution that visits it."
    )


def kumaraswamy_grid(points: int, a: float, b: float, c: float, gaps: tuple[float, float] = PUBLISHED_GAPS) -> Tensor:
    """The time grid of UCGM: even times u between two gaps, warped by t = (1 - (1 - u^a)^b)^c.

    With c = 1 the warp is the distribution function of Kumaraswamy's distribution. The published (1.17, 0.8, 1.1)
    takes more of its steps near noise and, less so, near data (UCGM, arXiv 2505.07447).

    Args:
        points: number of times.
        a: > 0; more than 1 takes more steps near noise.
        b: > 0; less than 1 takes more steps near data.
        c: > 0; as `a`.
        gaps: distances of the first u from 0 and of the last from 1. With a gap of 0 at the end, the last time is left
            out, because it is where sampling arrives: the grid is that of points + 1 times without it.

    Returns:
        (points,) float32 times on the CPU, increasing.

    Raises:
        InputError: no points, an exponent that is not positive, or gaps that leave nothing between them.
    """
    if points < 1 or not all(exponent > 0 for exponent in (a, b, c)) or not (0 <= min(gaps) and sum(gaps) < 1):
        raise InputError(
            f"A time warp needs at least one point, three positive numbers and gaps that add up to less than 1, but "
            f"it was given points={points}, ({a}, {b}, {c}) and gaps={gaps}. The published warp is (1.17, 0.8, 1.1)."
        )
    first, last = gaps
    u = torch.linspace(first, 1 - last, points + (last == 0), dtype=torch.float64).to(torch.float32)[:points]
    return (1 - (1 - u**a) ** b) ** c


def time_grid(
    num_inference_steps: int,
    shift: float | None = None,
    t_0: float = 0.0,
    t_1: float = 1.0,
    warp: tuple[float, float, float] | None = None,
) -> Tensor:
    """The time grid of a sampler: evenly spaced from `t_0` to `t_1`, then warped by `shift_timesteps`.

    Args:
        num_inference_steps: steps really taken, so the grid has one point more. (The published "250 steps" are 249.)
        shift: timestep shift; the grid is even in unwarped time and still starts at `t_0` and ends at `t_1`.
        t_0: start; 0 is noise.
        t_1: end; 1 is data. Less than `t_0` to go from data back to noise.
        warp: (a, b, c) of `kumaraswamy_grid`, whose times are followed by 1; in place of the shift, and from noise to
            data alone.

    Returns:
        (num_inference_steps + 1,) float32 times on the CPU.

    Raises:
        InputError: fewer than one step, a range that is empty or leaves [0, 1], a shift that is not positive, or a
            warp beside a shift or another range.
    """
    if num_inference_steps < 1:
        raise InputError(f"A sampler needs at least one step, but num_inference_steps is {num_inference_steps}.")
    if not (0 <= t_0 <= 1 and 0 <= t_1 <= 1) or t_0 == t_1:
        raise InputError(
            f"Sampling must go between two different times in [0, 1], but it goes from t_0={t_0} to t_1={t_1}. "
            "Use 0 to 1 for noise to data."
        )
    if warp is not None:
        if shift is not None or (t_0, t_1) != (0, 1):
            raise InputError(
                f"A time warp goes with no timestep shift, and from t=0 to 1, but the shift is {shift}, and t goes "
                f"from {t_0} to {t_1}. Leave one of them out."
            )
        return torch.cat([kumaraswamy_grid(num_inference_steps, *warp), torch.ones(1)])
    if shift is None:
        return torch.linspace(t_0, t_1, num_inference_steps + 1, dtype=torch.float32)
    _require_positive(shift)
    start, end = shift_timesteps(torch.tensor([t_0, t_1], dtype=torch.float64), 1 / shift).tolist()
    return shift_timesteps(torch.linspace(start, end, num_inference_steps + 1, dtype=torch.float32), shift)


def _require_positive(shift: float) -> None:
    if not shift > 0:
        raise InputError(
            f"The timestep shift must be positive, but it is {shift}. Use None to switch it off, 0.3 as published."
        )


def _require_range(low: float, high: float, name: str) -> None:
    if not 0 <= low < high <= 1:
        raise InputError(
            f"The range ({name}) = ({low}, {high}) must be increasing and inside [0, 1]. Swap or correct its ends."
        )
