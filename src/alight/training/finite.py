"""The finite check of gradients, whose answer an accelerator gives a step late, so that nobody waits for it."""

import torch
from torch import Tensor


class FiniteCheck:
    """Tell step by step if gradients were finite: on CUDA those of the step before, elsewhere those of this step."""

    def __init__(self) -> None:
        self._unread: tuple[Tensor, torch.cuda.Event] | None = None  # on its way to the CPU, and its arrival

    def next(self, norms: Tensor) -> bool:
        """Take in the norms of the gradients of a step, and give the answer that is due."""
        finite = norms.detach().isfinite().all()
        if not finite.is_cuda:
            return bool(finite)
        answer, arrival = self.last(), torch.cuda.Event()
        host = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
        arrival.record(torch.cuda.current_stream(finite.device))
        self._unread = host, arrival
        return answer

    def last(self) -> bool:
        """The answer of the last step, where it was not given yet."""
        if self._unread is None:
            return True
        (answer, arrival), self._unread = self._unread, None
        arrival.synchronize()
        return bool(answer)
