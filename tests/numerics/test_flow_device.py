"""The same numbers on an accelerator as on the CPU, and no step that waits for it."""

import pytest
import torch

from alight.flow import SOLVERS, GuidedVelocity, LinearPath, flow_matching_loss, log_likelihood, solve_ode, solve_sde
from helpers.draws import seeded

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def noise():
    return torch.randn(2, 4, 3, 3, generator=seeded())


def guided(device):
    labels = torch.tensor([1, 2], device=device)

    def model(x, t, class_labels):
        return torch.sin(x * class_labels.reshape(-1, 1, 1, 1)) - t.reshape(-1, 1, 1, 1) * x

    return GuidedVelocity(model, labels, torch.zeros_like(labels), 2.0, guidance_interval=(0.1, 0.9))


# Both devices round float32 differently; ten steps of order-one fields keep that below 1e-4.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.mark.parametrize("solver", SOLVERS)
def test_ode(solver):
    on_cpu, on_device = (solve_ode(guided(d), noise().to(d), 10, solver).x.cpu() for d in ("cpu", "cuda"))
    # An adaptive solver may choose other steps; its own tolerance of 1e-3 then decides.
    tolerance = TOLERANCE if solver in ("euler", "ab2", "heun2", "rk4") else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(on_device, on_cpu, **tolerance)


def test_sde_and_likelihood_draw_the_same_numbers():
    for sample in (
        lambda d: solve_sde(guided(d), noise().to(d), 10, path=LinearPath(), generator=seeded(1)).x,
        lambda d: log_likelihood(guided(d), noise().to(d), 10, generator=seeded(1)).log_prob,
        lambda d: (
            flow_matching_loss(lambda x, t, y: x, noise().to(d), None, path=LinearPath(), generator=seeded(1)).total
        ),
    ):
        torch.testing.assert_close(sample("cuda").cpu(), sample("cpu"), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", ["euler", "heun2", "ab2"])
def test_fixed_steps_never_wait_for_the_device(solver):
    velocity, x = guided("cuda"), noise().cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        solve_ode(velocity, x, 10, solver, 0.3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
