"""The geometry of perturbations: norms, steepest ascent, projection, random starts.

Pure functions on tensors. A *group* is the set of elements that share one norm; ``dims`` names the dimensions it spans,
so ``dims=(1, 2)`` on a ``(B, T, H)`` tensor means one group per example. Nothing here synchronizes the host with the
device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

#: the norms that a perturbation can be measured in, and their order
NORMS = {"l2": 2.0, "linf": float("inf")}


def group_norm(x: Tensor, *, dims: tuple[int, ...], norm: str = "l2") -> Tensor:
    r"""
    Return the norm of each group, in at least single precision, so that half-precision gradients do not overflow.

    :param x: any shape.
    :param dims: the dimensions that a group spans.
    :param norm: ``"l2"`` or ``"linf"``.
    :return: ``x``'s shape with ``dims`` reduced to 1.

    Example::

        >>> group_norm(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), dims=(1,)).flatten()
        tensor([5., 2.])
    """
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    if not x.numel():  # a batch without examples, or one whose texts are all empty; amax has no value there
        return x.new_zeros([1 if d - x.dim() in dims or d in dims else n for d, n in enumerate(x.shape)])
    if norm == "linf":
        return x.abs().amax(dim=dims, keepdim=True)  # vector_norm takes 16 times as long on the CPU
    size: Tensor = torch.linalg.vector_norm(x, NORMS[norm], dim=dims, keepdim=True)
    return size


def steepest_direction(grad: Tensor, *, dims: tuple[int, ...], norm: str = "l2") -> Tensor:
    r"""
    Return the step of length 1 that raises a linear function with gradient ``grad`` the most: :math:`g/\lVert
    g\rVert_2` for ``"l2"`` (Miyato et al. 2017), :math:`\mathrm{sign}(g)` for ``"linf"`` (Goodfellow et al. 2015).

    A group whose gradient is zero, infinite or NaN has no direction and gets 0.

    :param grad: the gradient, any shape.
    :param dims: the dimensions that a group spans.
    :param norm: ``"l2"`` or ``"linf"``.
    :return: a tensor of ``grad``'s shape.

    Example::

        >>> steepest_direction(torch.tensor([[3.0, -4.0], [0.0, 0.0]]), dims=(1,), norm="linf")
        tensor([[ 1., -1.],
                [ 0.,  0.]])
    """
    peak = group_norm(grad, dims=dims, norm="linf")
    if norm == "linf":
        direction = grad.sign() * peak.isfinite()
    else:  # the largest element is made 1 first: the squares of small gradients would vanish
        direction = grad / peak
        direction = direction / group_norm(direction, dims=dims)
    return direction.nan_to_num(0.0, 0.0, 0.0)  # a group without a direction is all NaN by now


def project(x: Tensor, epsilon: Tensor | float, *, dims: tuple[int, ...], norm: str = "l2") -> Tensor:
    r"""
    Return the nearest point of each group's ball of radius ``epsilon``.

    :param x: the perturbation, any shape.
    :param epsilon: the radius, in the units of the embedding, not negative.
    :param dims: the dimensions that a group spans.
    :param norm: ``"l2"`` or ``"linf"``.
    :return: a tensor of ``x``'s shape.

    Example::

        >>> project(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0, dims=(1,))
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """
    if norm == "linf":
        return x.clamp(-epsilon, epsilon)  # type: ignore[arg-type]
    size = group_norm(x, dims=dims, norm=norm)
    return x * torch.where(size > epsilon, epsilon / size, 1)


def ascend(x: Tensor, grad: Tensor, step: Tensor | float, *, dims: tuple[int, ...], norm: str = "l2") -> Tensor:
    r"""
    Take one step of steepest ascent, :math:`x + \mathrm{step}\cdot d(g)` with :func:`steepest_direction` :math:`d`.

    :param x: the perturbation, any shape.
    :param grad: the gradient at ``x``, of the same shape.
    :param step: the length of the step, in the units of the embedding.
    :param dims: the dimensions that a group spans.
    :param norm: ``"l2"`` or ``"linf"``.
    :return: a tensor of ``x``'s shape.

    Example::

        >>> ascend(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), 0.5, dims=(1,))
        tensor([[0.3000, 0.4000]])
    """
    return x + step * steepest_direction(grad, dims=dims, norm=norm)


def random_in_ball(
    like: Tensor,
    epsilon: Tensor | float,
    *,
    dims: tuple[int, ...],
    norm: str = "l2",
    free: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""
    Draw a random point in each group's ball: uniform in the cube for ``"linf"``, as Madry et al. (2018) start; for
    ``"l2"`` a uniform direction with a length uniform in ``[0, epsilon)``, since in hundreds of dimensions a point
    uniform in the ball lies on its surface.

    :param like: gives shape, dtype and device.
    :param epsilon: the radius, in the units of the embedding.
    :param dims: the dimensions that a group spans.
    :param norm: ``"l2"`` or ``"linf"``.
    :param free: False where the point is to be 0; broadcasts to ``like``. Everywhere free if ``None``.
    :param generator: where the randomness comes from; the device's default one if ``None``.
    :return: a tensor of ``like``'s shape.

    Example::

        >>> x = random_in_ball(torch.zeros(4, 3), 0.5, dims=(1,))
        >>> bool((group_norm(x, dims=(1,)) <= 0.5).all())
        True
    """
    x = torch.empty_like(like)
    x = x.uniform_(-1, 1, generator=generator) * epsilon if norm == "linf" else x.normal_(generator=generator)
    if free is not None:
        x = torch.where(free, x, 0)
    if norm == "linf":
        return x
    direction = steepest_direction(x, dims=dims)
    radius = torch.empty_like(group_norm(x, dims=dims)).uniform_(0, 1, generator=generator) * epsilon
    return (direction * radius).to(like.dtype)


def nodes_of(tensor: Tensor) -> Iterator[Any]:
    """Yield the nodes of the graph that a tensor was computed by."""
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            yield node
            seen.add(node)
            waiting.extend(before for before, _ in node.next_functions)
