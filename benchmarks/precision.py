"""What `inner_autocast` does to the direction: the cosine of each ascent step in bfloat16 to the one in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.setting import Setting
from benchmarks.variants import PLAIN, Variant, ours
from fastnlp_adv import FGM, PGD
from fastnlp_adv.attacks import Attack

LOW = torch.bfloat16
METHODS: dict[str, tuple[type[Attack], dict]] = {
    "PGD-3": (PGD, {"steps": 3}),
    "FGM, replace": (FGM, {"replace": True}),
}


def variants() -> list[Variant]:
    """Each method in the model's precision, and with inner passes in bfloat16."""
    found = [PLAIN]
    for name, (method, arguments) in METHODS.items():
        found.append(ours(method.__name__, name, **arguments))
        found.append(ours(method.__name__, f"{name}, inner bfloat16", **arguments, inner_autocast=LOW))
    return found


def cosines(name: str, setting: Setting) -> list[float]:
    """
    How well the perturbations agree after each ascent step, on a model without dropout.

    :param name: of the variant; for one that is not in lower precision there is nothing to compare.
    :param setting: the model and the batch.
    :return: one cosine per ascent step.
    """
    name, _, low = name.partition(", inner")
    if not low:
        return []
    method, arguments = METHODS[name]
    model, batch = setting.model().eval(), setting.samples()
    batch = {key: value.to(setting.device) for key, value in batch.items()}
    exact, rough = (_ascents(method, model, batch, {**arguments, "inner_autocast": p}) for p in (None, LOW))
    return [torch.cosine_similarity(a, b, dim=0).item() for a, b in zip(exact, rough, strict=True)]


def _ascents(method: type[Attack], model, batch: dict[str, Tensor], arguments: dict) -> list[Tensor]:
    found: list[Tensor] = []

    class Noted(method):  # type: ignore[misc,valid-type]
        def record(self, moved) -> None:
            found.append(torch.cat([delta.value.detach().double().flatten() for each in moved for delta in each]))
            super().record(moved)

    with Noted(model, **arguments) as attack:
        attack.step(lambda: model.train_step(**batch)["loss"])
    model.zero_grad()
    return found
