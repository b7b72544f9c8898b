"""Random numbers: a stream of its own for noise, and one dropout mask for several forward passes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Noise:
    """
    The stream that a method draws its noise from. It leaves the default generators alone, so noise changes no dropout
    mask and no shuffling, and it can be saved and resumed. It starts from the seed of ``torch.manual_seed``; streams of
    one method differ by ``number``.
    """

    def __init__(self, number: int = 0) -> None:
        self.generator: torch.Generator | None = None
        self._number = number
        self._state: Tensor | None = None

    def on(self, device: torch.device) -> torch.Generator:
        """Return the generator, which stays on the device that the first noise is drawn on."""
        if self.generator is None:
            self.generator = torch.Generator(device).manual_seed(torch.initial_seed() ^ self._number)
            if self._state is not None:
                self.generator.set_state(self._state)
        return self.generator

    @staticmethod
    def like(x: Tensor) -> Tensor:
        """Return an empty tensor for noise, of the shape of ``x`` and at least in single precision."""
        return torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))

    def state_dict(self) -> dict[str, Tensor | None]:
        """Return the position of the stream; nothing before the first noise."""
        return {"generator": self._state if self.generator is None else self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor | None]) -> None:
        """Continue where :meth:`state_dict` was taken; from the seed if that was before the first noise."""
        self.generator, self._state = None, state["generator"]


def same_dropout(model: nn.Module | None) -> Callable[[], None]:
    """
    Return a function to call before each of several forwards, so that all have the same dropout mask: it restores the
    random state, on the CPU and on the model's devices. The last one leaves the random state as any forward does.
    """
    parameters = () if model is None else model.parameters()
    devices = sorted({p.device for p in parameters if p.device.type == "cuda"}, key=str)
    states: list[Tensor] = []

    def begin_forward() -> None:
        if not states:
            states.extend([torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)])
            return
        torch.set_rng_state(states[0])
        for state, device in zip(states[1:], devices, strict=True):
            torch.cuda.set_rng_state(state, device)

    return begin_forward
