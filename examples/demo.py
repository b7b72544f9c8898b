"""
Fine-tune a small pretrained encoder on movie reviews, without a method and with three methods, attack each model, and
compare clean accuracy, accuracy under attack and cost. Takes about six minutes on two CPU cores.

    python demo.py
    python demo.py --train-size 5000 --attack-size 1000 --seed 1
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

# Before torch starts its threads: threads that spin while they wait stall one another on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import report
import torch
from cli import add_arguments, one_line_errors, positive
from data import Data, load_data
from fastNLP import Callback, ProgressCallback, logger
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from train_text_classification import prepare

from fastnlp_adv import FGMCallback, RDropCallback, Typos, robust_evaluate

FOLDERS = ("plain", "fgm", "fgm-quarter", "r-drop")
RADII = (0.1, 0.2)
BATCH = 32  # texts that are attacked together
COLUMNS = (
    TextColumn("{task.description:>12}"),
    BarColumn(),
    TextColumn("{task.completed:.0f}/{task.total:.0f}"),
    TimeElapsedColumn(),
)
NOTES = """\
±: standard error over texts: {clean} clean ones, of which {attacked} are attacked.
vectors: word vectors moved by at most {radii} of their mean length.
one typo: in one word, the worst of those tried. cost: a step's time, plain = 1.
Differences: points, paired by text, clear beyond two standard errors. One seed."""


def methods(epsilon: float, kl_weight: float) -> dict[str, list[Callback]]:
    """Make the callbacks of each method. The name of a method is its call."""
    calls = [
        _call(FGMCallback, epsilon=epsilon),
        _call(FGMCallback, epsilon=epsilon, fraction=0.25, replace=True),
        _call(RDropCallback, kl_weight=kl_weight),
    ]
    return {"plain": [], **dict(calls)}


def _call(callback: type[Callback], **arguments) -> tuple[str, list[Callback]]:
    written = ", ".join(f"{name}={value}" for name, value in arguments.items())
    return f"{callback.__name__}({written})", [callback(**arguments)]


class TrainingBar(ProgressCallback):
    """Shows a training in the same display as the attacks."""

    def __init__(self, bars: Progress):
        super().__init__(monitor=None, larger_better=True)
        self.bars = bars

    def on_train_begin(self, trainer):
        self.bar = self.bars.add_task("training", total=trainer.n_batches)

    def on_train_batch_end(self, trainer):
        self.bars.advance(self.bar)


def choose(data: Data, test_size: int, attack_size: int) -> list[tuple[str, int]]:
    """Return test texts and labels: first the texts to attack, then the others, each sorted by length to pad little."""
    rows = list(zip(data.test["text"][:test_size], data.test["label"][:test_size], strict=True))
    return sorted(rows[:attack_size], key=_length) + sorted(rows[attack_size:], key=_length)


def test(model, tokenizer, rows: list[tuple[str, int]], args, bars: Progress) -> dict[str, list[bool | None]]:
    """Return by column whether each text is predicted right; ``None`` if no typo is possible."""
    max_length = min(args.max_length, tokenizer.model_max_length)
    clean, attacked = [], rows[: args.attack_size]
    model.eval()
    with torch.no_grad():
        for batch in bars.track(_encode(rows, tokenizer, max_length), description="clean texts"):
            clean += _right(model(**{name: value.to(args.device) for name, value in batch.items()}), batch)

    still_right = {radius: [] for radius in (0.0, *RADII)}

    def note(radius, outputs, batch):
        still_right[radius] += _right(outputs, batch)

    clean_attacked = clean[: len(attacked)]
    to_move = [row for row, is_right in zip(attacked, clean_attacked, strict=True) if is_right]  # wrong stays wrong
    if to_move:
        robust_evaluate(
            model,
            _encode(to_move, tokenizer, max_length),
            epsilons=RADII,
            steps=args.attack_steps,
            restarts=1,
            update=note,
            progress=partial(bars.track, description="word vectors"),
        )
    typos = Typos(model, tokenizer, max_typos=1, candidates=8, batch_size=BATCH, max_length=max_length)
    misspelt = typos.attack(*zip(*attacked, strict=True), progress=partial(bars.track, description="one typo"))
    return {
        "clean texts": clean,
        **{f"vectors {radius}": _spread(still_right[radius], clean_attacked) for radius in RADII},
        "one typo": [None if each.not_attacked else each.robust for each in misspelt],
    }


def _length(row: tuple[str, int]) -> int:
    return len(row[0])


def _encode(rows: list[tuple[str, int]], tokenizer, max_length: int) -> list[dict[str, torch.Tensor]]:
    batches = []
    for begin in range(0, len(rows), BATCH):
        texts, labels = zip(*rows[begin : begin + BATCH], strict=True)
        encoded = tokenizer(list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        batches.append({**encoded, "labels": torch.tensor(labels)})
    return batches


def _right(outputs, batch) -> list[bool]:
    return (outputs.logits.argmax(-1).cpu() == batch["labels"].cpu()).tolist()


def _spread(still_right: list[bool], clean: list[bool]) -> list[bool]:
    """Merge the answers for the texts that were right with the texts that were wrong."""
    answers = iter(still_right)
    return [is_right and next(answers) for is_right in clean]


def compare(name: str, callbacks: list[Callback], folder: Path, data: Data, args, parser, console) -> report.Comparison:
    """Train with the callbacks, save the model, and test it."""
    timer = report.StepTimer(args.device)
    rows = choose(data, args.test_size, args.attack_size)
    bars = Progress(*COLUMNS, console=console)
    with one_line_errors(parser):
        folder.mkdir(parents=True, exist_ok=True)
        options = {"progress_bar": TrainingBar(bars), "evaluate_every": -args.epochs - 1}  # never
        trainer, backbone, tokenizer = prepare([*callbacks, timer], data, args, **options)
    with bars:
        trainer.run(num_eval_sanity_batch=0, catch_KeyboardInterrupt=False)
        backbone.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        result = report.Comparison(name, timer.median, test(backbone, tokenizer, rows, args, bars))
    report.save(result.row(), vars(args), folder)
    return result


def main(argv: list[str] | None = None) -> list[report.Comparison]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    add = parser.add_argument
    add("--test-size", type=positive, default=1000, help="number of test texts (default: %(default)s)")
    add("--attack-size", type=positive, default=250, help="number of test texts to attack (default: %(default)s)")
    add("--attack-steps", type=positive, default=3, help="steps of the attack on word vectors (default: %(default)s)")
    parser.set_defaults(train_size=640, max_length=64, epochs=3, lr=1e-4, epsilon=1.0, output_dir=Path("runs/demo"))
    args = parser.parse_args(argv)
    logger.set_stdout("raw", "WARNING")
    with one_line_errors(parser):
        chosen = methods(args.epsilon, args.kl_weight)
        data = load_data(args.dataset, args.train_size)
    console = Console()
    console.print(f"{args.model} on {len(data.train)} texts of {data.source}")
    console.print(
        f"batch size {args.batch_size}, learning rate {args.lr:g}, epochs {args.epochs}, seed {args.seed}, "
        f"{args.device}, {torch.get_num_threads()} threads"
    )
    results = []
    for number, (name, callbacks) in enumerate(chosen.items()):
        console.rule(f"{number + 1} of {len(chosen)}: {name}", align="left")
        folder = args.output_dir / FOLDERS[number]
        results.append(compare(name, callbacks, folder, data, args, parser, console))
    console.rule("accuracy in %", align="left")
    report.print_comparison(results, console)
    console.print()
    console.print(report.sentence(results[1], results[0]))
    sizes = {name: len(column) for name, column in results[0].right.items()}
    radii = " or ".join(map(str, RADII))
    console.print(NOTES.format(clean=sizes["clean texts"], attacked=sizes["one typo"], radii=radii))
    report.save_rows([result.row() for result in results], args.output_dir / "results.csv")
    console.print(f"Saved in {args.output_dir}: the table as results.csv, models and metrics in {', '.join(FOLDERS)}")
    return results


if __name__ == "__main__":
    main()
