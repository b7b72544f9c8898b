"""Random numbers: a stream of its own for noise, and one dropout mask for several forward passes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["Noise", "Replay"]


class Noise:
    """
    The stream that a method draws its noise from. It leaves the default generators alone, so noise changes no dropout
    mask and no shuffling, and it can be saved and resumed. It starts from the seed of ``torch.manual_seed``.

    :param number: distinguishes several streams of one method, which would draw the same otherwise.

    Example::

        >>> noise, x = Noise(), torch.zeros(2)
        >>> state = noise.state_dict()
        >>> first = noise.like(x).normal_(generator=noise.on(x.device))
        >>> noise.load_state_dict(state)
        >>> torch.equal(first, noise.like(x).normal_(generator=noise.on(x.device)))
        True
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


class Replay:
    """
    Runs several forward passes under the same dropout mask, by putting the random state back before each of them.

    :param model: its devices' random states are put back as well as the CPU's; ``None`` for only the CPU's.
    :param dropout_mask: ``"same"``, or ``"new"`` for doing nothing.

    Example::

        >>> model, x = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)), torch.ones(1, 8)
        >>> begin_pass = Replay(model, "same").step()
        >>> begin_pass()
        >>> first = model(x)
        >>> begin_pass()
        >>> second = model(x)
        >>> torch.equal(first, second)
        True
    """

    def __init__(self, model: nn.Module | None, dropout_mask: str):
        self.same = dropout_mask == "same"
        parameters = model.parameters() if self.same and model is not None else ()
        self._devices = sorted({p.device for p in parameters if p.device.type == "cuda"}, key=str)

    def step(self) -> Callable[[], None]:
        """Return the function to call before each pass of a step. The last leaves the random state unchanged."""
        states: list[Tensor] = []

        def begin_pass() -> None:
            if self.same and not states:
                states.extend([torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._devices)])
            elif self.same:
                torch.set_rng_state(states[0])
                for state, device in zip(states[1:], self._devices, strict=True):
                    torch.cuda.set_rng_state(state, device)

        return begin_pass
