"""What the methods measured, as numbers, as text, and in fastNLP's log."""

from __future__ import annotations

from typing import Any

from fastNLP import logger

__all__ = ["as_text", "log_values", "measured"]


def measured(trainer: Any) -> dict[str, float]:
    """
    Return ``trainer.state["adv"]`` as numbers. It reads tensors, so it waits for the device.

    :param trainer: the Trainer.
    :return: the numbers by name; empty where no method has run yet.
    """
    return {name: float(value) for name, value in trainer.state.get("adv", {}).items() if value is not None}


def as_text(values: dict[str, float]) -> str:
    """
    Write numbers in one line.

    :param values: numbers by name.
    :return: ``name=value`` pairs, with four digits.

    Example::

        >>> as_text({"loss": 0.69314, "skipped": 0.0})
        'loss=0.6931, skipped=0'
    """
    return ", ".join(f"{name}={value:.4g}" for name, value in values.items())


def log_values(trainer: Any, values: dict[str, float]) -> None:
    """
    Write what was measured to fastNLP's log.

    :param trainer: the Trainer.
    :param values: numbers by name; nothing is written where there are none.
    """
    if values:
        logger.info(f"Batch {trainer.global_forward_batches}: {as_text(values)}")
