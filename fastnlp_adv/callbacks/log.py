"""What the methods measured, for people and for fastNLP's log."""

from __future__ import annotations

from typing import Any

from fastNLP import logger

__all__ = ["log_state"]


def log_state(trainer: Any) -> None:
    """
    Write ``trainer.state["adv"]`` to fastNLP's log, on the first rank. Reads tensors, so it waits for the device.

    :param trainer: the Trainer.
    """
    values = {name: value for name, value in trainer.state.get("adv", {}).items() if value is not None}
    if values and trainer.driver.global_rank == 0:
        text = ", ".join(f"{name}={float(value):.4g}" for name, value in values.items())
        logger.info(f"Batch {trainer.global_forward_batches}: {text}")
