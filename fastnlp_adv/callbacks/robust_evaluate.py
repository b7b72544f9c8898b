"""Robust evaluation during training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import partial
from typing import Any

from fastNLP import Metric, MoreEvaluateCallback, logger
from fastNLP.core.drivers.torch_driver import TorchSingleDriver
from fastNLP.core.utils import dataclass_to_dict, f_rich_progress
from torch import Tensor, nn

from ..robustness import WorstCase
from ..robustness.evaluate import averages, modes_kept, score
from .log import as_text


class RobustMetric(Metric):
    """The mean of the highest losses, and the share of labels that are right at all points."""

    def __init__(self) -> None:
        super().__init__(backend="torch")
        self.reset()

    def reset(self) -> None:
        self.totals = [0.0] * 4

    def update(self, robust_totals: Tensor) -> None:
        self.totals = [a + b for a, b in zip(self.totals, robust_totals.tolist(), strict=True)]

    def get_metric(self) -> dict[str, float]:
        return averages(*self.totals)


class RobustEvaluateCallback(MoreEvaluateCallback):
    """
    Evaluates under an attack on the lookups while the Trainer trains, with fastNLP's own metrics, progress bar and
    saving. The attack is :class:`~fastnlp_adv.robustness.WorstCase` with one epsilon; it ascends on the loss that
    ``train_step`` 's logits have in eval mode, and the metrics see what ``evaluate_step`` returns at the worst points.

    Beside the metrics the results have ``loss#robust``, the mean of the highest losses (never below the clean loss),
    and ``accuracy#robust``, the share of labels whose prediction stayed right at all points. Each can be a
    ``topk_monitor``. An evaluation costs about ``2 * restarts * steps`` clean ones: use a part of the data, or evaluate
    rarely. On one device; not for models compiled by ``torch.compile``.

    :param dataloaders: the data; the Trainer's ``evaluate_dataloaders`` if ``None``.
    :param metrics: by name; the Trainer's if ``None``, which every evaluation resets.
    :param epsilon: the radius of the ball of each example; see :func:`~fastnlp_adv.robust_evaluate`.
    :param relative: in units of the mean norm of the rows of the embedding; else in the units of the embedding.
    :param steps: the number of ascent steps from each start.
    :param restarts: the number of random starts.
    :param alpha: the length of an ascent step, in the units of ``epsilon``; ``2.5 * epsilon / steps`` if ``None``.
    :param emb_name: see :class:`~fastnlp_adv.FGM`.
    :param labels: the field of the batch with the labels; ``labels``, ``label``, ``targets`` or ``target`` if ``None``.
    :param loss: a function of ``(outputs, batch)``, the outputs of ``train_step``, that returns a loss for each
        example; cross entropy of ``pred`` or ``logits`` if ``None``.
    :param seed: of the starts, the same in every evaluation.
    :param evaluate_every: as in fastNLP: batches, or minus epochs, or a function of the Trainer.
    :param num_eval_sanity_batch: how many batches are attacked when the Trainer is built, to fail early.
    :param kwargs: the other arguments of fastNLP's ``MoreEvaluateCallback``: ``watch_monitor``, ``topk``,
        ``topk_monitor``, ``folder``, ``progress_bar`` and so on; ``verbose=0`` prints no results.
    :raises ValueError: if an argument is out of range or, when the Trainer is built, does not fit model or data.

    Example::

        Trainer(
            ...,
            evaluate_dataloaders=dev,
            metrics={"acc": Accuracy()},
            callbacks=[RobustEvaluateCallback(epsilon=0.2, topk=1, topk_monitor="accuracy#robust")],
        )
    """

    def __init__(
        self,
        dataloaders: Any = None,
        metrics: dict[str, Any] | None = None,
        *,
        epsilon: float = 0.2,
        relative: bool = True,
        steps: int = 20,
        restarts: int = 3,
        alpha: float | None = None,
        emb_name: str | None = None,
        labels: str | None = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        seed: int = 0,
        evaluate_every: int | Callable[[Any], bool] = -1,
        num_eval_sanity_batch: int = 1,
        **kwargs: Any,
    ):
        self._attack = WorstCase(
            epsilons=(epsilon,),
            relative=relative,
            steps=steps,
            restarts=restarts,
            alpha=alpha,
            emb_name=emb_name,
            seed=seed,
        )
        unit = " rows" if relative else ""
        title = f"Under attack (epsilon {epsilon:g}{unit}, {steps} steps from each of {restarts} starts)"
        self._title = title if kwargs.pop("verbose", 1) else None
        super().__init__(
            dataloaders,
            {} if metrics is None else metrics,
            evaluate_every=evaluate_every,
            num_eval_sanity_batch=0,  # the attack is attached later than fastNLP checks
            evaluate_batch_step_fn=self._evaluate_batch,
            verbose=0,  # its results would have no title
            **kwargs,
        )
        self.dataloaders: Any = dataloaders
        self.evaluator: Any = None
        self._takes_data, self._takes_metrics = dataloaders is None, metrics is None
        self._sanity_batches = num_eval_sanity_batch
        self._score = partial(score, labels=labels, loss=loss)

    def on_after_trainer_initialized(self, trainer: Any, driver: Any) -> None:
        if type(driver) is not TorchSingleDriver or isinstance(driver.model, nn.DataParallel):
            raise ValueError(
                "Expected RobustEvaluateCallback to run on fastNLP's torch driver on one device, but got "
                f"{type(driver).__name__}. Evaluate in a separate process, with `robust_evaluate`."
            )
        if self._takes_data:
            self.dataloaders = trainer.evaluate_dataloaders
        if self.dataloaders is None:
            raise ValueError(
                "Expected RobustEvaluateCallback to have data, but got neither `dataloaders` nor a Trainer with "
                "`evaluate_dataloaders`. Give one of them."
            )
        if self._takes_metrics:
            self.metrics = trainer.metrics or {}
        self.metrics = {**self.metrics, "robust": RobustMetric()}
        self._attack.detach().attach(driver.unwrap_model())
        super().on_after_trainer_initialized(trainer, driver)
        self._trainer = trainer
        self._run, self.evaluator.run = self.evaluator.run, self._evaluate
        if self._sanity_batches > 0:
            self.topk_saver.get_monitor_value(self.evaluator.run(num_eval_batch_per_dl=self._sanity_batches))

    def _evaluate(self, num_eval_batch_per_dl: int = -1) -> dict[str, Any]:
        """Replace the evaluator's ``run``: restart the attack, and print the results under a title."""
        self._attack.begin()
        with modes_kept(self._attack.attached):
            results: dict[str, Any] = self._run(num_eval_batch_per_dl)
        if self._title is not None:
            # as fastNLP prints them: a line of the log would be drawn into rich's bar
            show = f_rich_progress.print if self.evaluator.progress_bar == "rich" else logger.info
            numbers = {name: value for name, value in results.items() if isinstance(value, (int, float))}
            others = {name: value for name, value in results.items() if name not in numbers}
            show(f"{self._title}: {as_text(numbers)}" + (f", {others}" if others else ""))
        return results

    def _evaluate_batch(self, evaluator: Any, batch: Any) -> None:
        """Take the place of fastNLP's step for a batch."""
        with self._attack.running():
            *_, (_, worst) = self._attack.search(lambda: self._score(self._trainer.train_step(batch), batch))
            outputs = self._attack.at(worst, lambda: evaluator.evaluate_step(batch))
        if is_dataclass(outputs) and not isinstance(outputs, Mapping):
            outputs = dataclass_to_dict(outputs)
        # fastNLP refuses a field that both have; metrics are of those that evaluate_step returned
        if isinstance(batch, Mapping):
            batch = {name: value for name, value in batch.items() if name not in outputs}
        evaluator.update(batch, {**outputs, "robust_totals": worst.totals()})
