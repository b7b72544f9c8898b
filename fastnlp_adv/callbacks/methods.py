"""The callbacks that only name their method, and the table of all methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastNLP import logger

from ..attacks import AWP, FGM, FGSM, PGD, SAM, TAVAT, FreeLB, NEFTune
from ..method import Cost, Method
from ..regularizers import R3F, SMART, VAT, GradientPenalty, RDrop, has_dropout
from .atta import ATTACallback
from .base import AttackCallback, MethodCallback, RegularizerCallback, takes

__all__ = [
    "METHODS",
    "ATTACallback",
    "AWPCallback",
    "FGMCallback",
    "FGSMCallback",
    "FreeLBCallback",
    "GradientPenaltyCallback",
    "NEFTuneCallback",
    "PGDCallback",
    "R3FCallback",
    "RDropCallback",
    "SAMCallback",
    "SMARTCallback",
    "TAVATCallback",
    "VATCallback",
]


class FGMCallback(AttackCallback):
    r"""
    Train with the fast gradient method, :class:`~fastnlp_adv.FGM`: each batch clean and at
    :math:`e + \epsilon g/\lVert g\rVert`.

    :options:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if nothing matches ``emb_name``.

    Example::

        >>> callback = FGMCallback(epsilon=1.0, start=0.1)   # trainer = Trainer(..., callbacks=[callback])
    """

    @takes(FGM)
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...


class FGSMCallback(AttackCallback):
    r"""
    Train with the fast gradient sign method, :class:`~fastnlp_adv.FGSM`: each batch clean and at
    :math:`e + \epsilon\,\mathrm{sign}(g)`.

    :options:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if nothing matches ``emb_name``.

    Example::

        >>> callback = FGSMCallback(epsilon=0.003)   # trainer = Trainer(..., callbacks=[callback])
    """

    @takes(FGSM)
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...


class PGDCallback(AttackCallback):
    r"""
    Train with projected gradient descent, :class:`~fastnlp_adv.PGD`: each batch clean, and after ``steps`` ascent
    steps within a ball.

    :options:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if nothing matches ``emb_name``.

    Example::

        >>> callback = PGDCallback(epsilon=1.0, steps=3)   # trainer = Trainer(..., callbacks=[callback])
    """

    @takes(PGD)
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...


class FreeLBCallback(AttackCallback):
    r"""
    Train with :class:`~fastnlp_adv.FreeLB`: on the mean loss along the path of the perturbation.

    :options:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if ``emb_name`` matches no embedding.

    Example::

        >>> callback = FreeLBCallback(steps=3)   # trainer = Trainer(..., callbacks=[callback])
    """

    @takes(FreeLB)
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...


class TAVATCallback(AttackCallback):
    r"""
    Train with token-aware virtual adversarial training, :class:`~fastnlp_adv.TAVAT`: as FreeLB, with perturbations of
    tokens that are kept from step to step, and are part of a checkpoint.

    :options:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if ``emb_name`` matches no embedding.

    Example::

        >>> callback = TAVATCallback(steps=2)   # trainer = Trainer(..., callbacks=[callback])
    """

    @takes(TAVAT)
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...


class NEFTuneCallback(AttackCallback):
    r"""
    Train with noisy embeddings, :class:`~fastnlp_adv.NEFTune`: each batch once, with noise on its lookups.

    :options:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if ``emb_name`` matches no embedding.

    Example::

        >>> callback = NEFTuneCallback(alpha=5.0)   # trainer = Trainer(..., callbacks=[callback])
    """

    @takes(NEFTune)
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...


class AWPCallback(AttackCallback):
    r"""
    Train with adversarial weight perturbation, :class:`~fastnlp_adv.AWP`: each batch at the weights, and at the weights
    moved along their gradient. They are put back before the optimizer steps.

    :options:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if no trainable parameter
        matches ``params``.

    Example::

        >>> callback = AWPCallback(gamma=0.001, params="weight")   # trainer = Trainer(..., callbacks=[callback])
    """

    @takes(AWP)
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...


class SAMCallback(AttackCallback):
    r"""
    Train with sharpness-aware minimization, :class:`~fastnlp_adv.SAM`: each batch at the weights moved along their
    gradient, by ``rho`` in all. They are put back before the optimizer steps.

    :options:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if no trainable parameter
        matches ``params``.

    Example::

        >>> callback = SAMCallback(rho=0.05)   # trainer = Trainer(..., callbacks=[callback])
    """

    @takes(SAM)
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...


class RDropCallback(RegularizerCallback):
    r"""
    Train with R-Drop, :class:`~fastnlp_adv.RDrop`, any model whose ``train_step`` returns ``loss`` and ``pred`` (or
    ``logits``). A model with :class:`~fastnlp_adv.RDropMixin` is run with the callback's settings instead of its own.

    :options:
    :raises ValueError: if an argument is out of range.

    Example::

        >>> callback = RDropCallback(kl_weight=1.0)   # trainer = Trainer(..., callbacks=[callback])
    """

    @takes(RDrop)
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def on_after_trainer_initialized(self, trainer: Any, driver: Any) -> None:
        super().on_after_trainer_initialized(trainer, driver)
        if not has_dropout(driver.unwrap_model()):
            logger.rank_zero_warning(
                "R-Drop compares two dropout masks, but this model has no dropout above 0, so the divergence is 0 and "
                "training is plain, at twice the cost. Give the model dropout, or remove RDropCallback."
            )


class VATCallback(RegularizerCallback):
    r"""
    Train with virtual adversarial training, :class:`~fastnlp_adv.VAT`: the prediction should not change in the
    direction in which it changes most. Batches whose outputs hold no ``loss`` train on this term only; with
    ``start`` or ``every`` they would not train in the steps between.

    :options:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if ``emb_name`` matches no embedding.

    Example::

        >>> callback = VATCallback(epsilon=1.0)   # trainer = Trainer(..., callbacks=[callback])
    """

    @takes(VAT)
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...


class SMARTCallback(RegularizerCallback):
    r"""
    Train with smoothness-inducing regularization and, if asked, Bregman proximal points, :class:`~fastnlp_adv.SMART`.

    :options:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if ``emb_name`` matches no embedding.

    Example::

        >>> callback = SMARTCallback(weight=1.0, bregman_weight=1.0)   # trainer = Trainer(..., callbacks=[callback])
    """

    @takes(SMART)
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def on_after_optimizers_step(self, trainer: Any, optimizers: Any) -> None:
        self.method.after_step()


class R3FCallback(RegularizerCallback):
    r"""
    Train with :class:`~fastnlp_adv.R3F`: the prediction should not change under noise.

    :options:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if ``emb_name`` matches no embedding.

    Example::

        >>> callback = R3FCallback(epsilon=0.1)   # trainer = Trainer(..., callbacks=[callback])
    """

    @takes(R3F)
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...


class GradientPenaltyCallback(RegularizerCallback):
    r"""
    Train with a penalty on the squared gradient at the embeddings, :class:`~fastnlp_adv.GradientPenalty`.

    :options:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if ``emb_name`` matches no embedding.

    Example::

        >>> callback = GradientPenaltyCallback(weight=0.1)   # trainer = Trainer(..., callbacks=[callback])
    """

    @takes(GradientPenalty)
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...


@dataclass(frozen=True)
class Entry:
    """
    One method.

    :param callback: its callback.
    """

    callback: type[MethodCallback]

    @property
    def method(self) -> type[Method]:
        """The class for plain loops."""
        return self.callback.method_class

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.method.__name__

    @property
    def title(self) -> str:
        """The name as papers write it."""
        return _TITLES.get(self.name, self.name)

    @property
    def paper(self) -> str:
        """The address of the paper."""
        return self.method.paper

    @property
    def kind(self) -> str:
        """``"attack"``, of which a Trainer takes one, or ``"regularizer"``, which all combine."""
        return "attack" if issubclass(self.callback, AttackCallback) else "regularizer"

    def cost(self, **arguments: Any) -> Cost:
        """Return the passes of a step with these arguments."""
        return self.method(**arguments).cost


_TITLES = {"RDrop": "R-Drop", "TAVAT": "TA-VAT", "GradientPenalty": "gradient penalty"}
_CALLBACKS = [*AttackCallback.__subclasses__(), *RegularizerCallback.__subclasses__()]  # users' own come later

#: the methods by name, attacks first
METHODS = {each.name: each for each in sorted(map(Entry, _CALLBACKS), key=lambda each: (each.kind, each.name))}
