"""
Deliberate faults of the package's behaviour, each of which some test has to catch; ``tools/faults.py`` tries them.

A fault is a function that patches something public, of this package or of what it stands on, so it outlives a rebuild
of the inside; its docstring says what is wrong. What a rebuild may rename stands in the functions of "Seams".
Nothing is imported before a fault is switched on, since tests start processes that import little.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import count
from types import ModuleType
from typing import Any
from weakref import WeakSet

__all__ = ["FAULTS", "NONE", "Fault", "switch_on_at_import", "switched_on"]

PACKAGE = "fastnlp_adv"
#: switches nothing on, but imports what faults import
NONE = "none"


@dataclasses.dataclass(frozen=True)
class Fault:
    """
    Something that is wrong.

    :param name: its name.
    :param area: what it belongs to.
    :param wrong: what is wrong, in a sentence.
    :param tests: the tests that may catch it, relative to the root.
    :param patch: switches it on.
    """

    name: str
    area: str
    wrong: str
    tests: tuple[str, ...]
    patch: Callable[[], None]


FAULTS: dict[str, Fault] = {}


def area(name: str) -> Callable[..., Callable[[Callable[[], None]], Callable[[], None]]]:
    """Return a decorator for the faults of an area, which takes the tests that may catch them, below ``tests/``."""

    def with_tests(*tests: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
        def register(patch: Callable[[], None]) -> Callable[[], None]:
            assert patch.__doc__ and patch.__name__ not in FAULTS, patch.__name__
            paths = tuple(f"tests/{test}" for test in tests)
            FAULTS[patch.__name__] = Fault(patch.__name__, name, patch.__doc__, paths, patch)
            return patch

        return register

    return with_tests


@contextmanager
def switched_on(name: str) -> Iterator[None]:
    """
    Switch a fault on.

    :param name: its name, or :data:`NONE`.
    """
    for module in (".attacks", ".regularizers", ".callbacks", ".robustness", ".compat", ".functional", ".divergences"):
        importlib.import_module(PACKAGE + module)
    with _undo:
        if name != NONE:
            FAULTS[name].patch()
        yield


def switch_on_at_import(name: str) -> None:
    """
    Switch a fault on for good, as soon as the package has been imported.

    :param name: its name, or :data:`NONE`.
    """
    sys.meta_path.insert(0, _AfterImport(name))


class _AfterImport:
    """Finds the package as it would be found without it, and switches a fault on behind its import."""

    def __init__(self, name: str):
        self.name = name

    def find_spec(self, module: str, path: Any = None, target: Any = None) -> Any:
        if module != PACKAGE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(PACKAGE)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(loaded: ModuleType) -> None:
            execute(loaded)
            try:
                _for_good.enter_context(switched_on(self.name))
            except BaseException:  # an error of the import would look as if tests had caught the fault
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(70)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


# How patches are made, and taken back.

_undo, _for_good = ExitStack(), ExitStack()


def put(owner: Any, name: str, value: Any) -> None:
    """Set an attribute of a module, a class or an object."""
    if name in vars(owner):
        _undo.callback(setattr, owner, name, vars(owner)[name])
    else:
        _undo.callback(delattr, owner, name)
    setattr(owner, name, value)


def around(owner: Any, name: str, call: Callable[..., Any]) -> None:
    """
    Let a function or method run differently, wherever the package has imported it.

    :param call: runs in its place; takes it, and its arguments.
    """
    original = getattr(owner, name)

    @functools.wraps(original)
    def changed(*args: Any, **kwargs: Any) -> Any:
        return call(original, *args, **kwargs)

    put(owner, name, changed)
    for module in package_modules() if inspect.ismodule(owner) else ():
        for other in [other for other, value in vars(module).items() if value is original]:
            put(module, other, changed)


def package_modules() -> list[Any]:
    return [module for name, module in list(sys.modules.items()) if name.split(".")[0] == PACKAGE]


def around_all(classes: Iterable[type], name: str, call: Callable[..., Any]) -> None:
    """Let a method of several classes run differently, once where they inherit it from one."""
    for owner in {next(base for base in cls.__mro__ if name in vars(base)) for cls in classes}:
        around(owner, name, call)


def asked_by_package() -> bool:
    """Tell whether the package, and nothing else, has called the patched function."""
    frame: Any = sys._getframe(1)
    while frame.f_globals.get("__name__") in (__name__, "contextlib"):
        frame = frame.f_back
    return frame.f_globals.get("__name__", "").split(".")[0] == PACKAGE


def unless_asked_by_package(value: Any) -> Callable[..., Any]:
    """Return something else to the package, and to others what is right."""
    return lambda original, *args, **kwargs: value if asked_by_package() else original(*args, **kwargs)


def given(*classes: type, **changes: Callable[[Any], Any]) -> None:
    """Build objects with other arguments than are given: what a function makes of them, by name."""

    def init(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(original).bind(*args, **kwargs)
        bound.apply_defaults()
        bound.arguments.update({name: change(bound.arguments[name]) for name, change in changes.items()})
        original(*bound.args, **bound.kwargs)

    for cls in classes:
        around(cls, "__init__", init)


def acting(name: str, **changes: Callable[[Any], Any]) -> None:
    """Let an attack make its passes, or a regularizer its term, as if its arguments were others."""

    @contextmanager
    def pretending(self: Any) -> Iterator[None]:
        values = {name: getattr(self, name) for name in changes}
        vars(self).update({name: change(values[name]) for name, change in changes.items()})
        try:
            yield
        finally:
            vars(self).update(values)

    def passes(original: Callable[..., Any], self: Any) -> Iterator[Any]:
        with pretending(self):
            yield from original(self)

    def term(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        with pretending(self):
            return original(self, *args, **kwargs)

    cls = method(name)
    around(cls, *(("passes", passes) if hasattr(cls, "passes") else ("regularize", term)))


def passes_of(*names: str, change: Callable[[int, Any], dict[str, Any]]) -> None:
    """Change what the passes of attacks are, given the number of each and itself."""

    def passes(original: Callable[..., Any], self: Any) -> Iterator[Any]:
        for number, each in enumerate(original(self)):
            yield dataclasses.replace(each, **change(number, each))

    for name in names:
        around(method(name), "passes", passes)


def without_way_out(owner: Any, *names: str) -> None:
    """Let errors end with what was expected and what came."""

    def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except (ValueError, RuntimeError) as error:
            error.args = (re.sub(r"\. .*", ".", str(error), flags=re.DOTALL),)
            raise

    for name in names:
        around(owner, name, call)


# Seams: what a rebuild may rename.


def module(name: str) -> Any:
    return importlib.import_module(f"{PACKAGE}.{name}")


def method(name: str) -> Any:
    return getattr(module("attacks" if hasattr(module("attacks"), name) else "regularizers"), name)


def methods(*names: str) -> list[Any]:
    return [method(name) for name in names]


functional, divergences, batch, random_state, robustness = (
    functools.partial(module, name) for name in ("functional", "divergences", "batch", "random_state", "robustness")
)


def attacks() -> list[Any]:
    return methods("FGM", "PGD", "FreeLB", "TAVAT", "ATTA", "NEFTune", "AWP", "SAM")


def on_embeddings() -> list[Any]:
    return methods("FGM", "FGSM", "PGD", "FreeLB", "TAVAT", "ATTA", "NEFTune")


def in_fastnlp(name: str) -> Any:
    return getattr(module("callbacks"), name)


def callbacks() -> list[Any]:
    names = "FGM FGSM PGD FreeLB TAVAT ATTA NEFTune AWP SAM RDrop VAT SMART R3F GradientPenalty"
    return [in_fastnlp(f"{name}Callback") for name in names.split()]


def detach() -> str:
    """Return the name of the method that takes the hooks off."""
    return "close"


def inner_gradients(change: Callable[[Any], Any], *, of_graphs: bool = False) -> None:
    """Change what the package gets where a backward pass ends at the lookups."""
    import torch

    def grad(original: Callable[..., Any], *args: Any, create_graph: bool = False, **kwargs: Any) -> Any:
        found = original(*args, create_graph=create_graph, **kwargs)
        if not asked_by_package() or (of_graphs and not create_graph):
            return found
        return tuple(None if each is None else change(each) for each in found)

    around(torch.autograd, "grad", grad)


def in_state(change: Callable[[Any, dict[str, Any]], Any]) -> None:
    """Change ``trainer.state["adv"]`` once the passes of a batch are over."""
    from fastNLP import Trainer

    def step(original: Callable[..., None], trainer: Any) -> None:
        if trainer.state.get("adv"):
            change(trainer, trainer.state["adv"])
        original(trainer)

    around(Trainer, "step", step)


def as_seen_by_package(cls: type, name: str, value: Any) -> None:
    """Let the package see another value of an attribute that the objects of a class have."""

    def get(self: Any) -> Any:
        if name not in vars(self):
            raise AttributeError(name)
        return value if asked_by_package() else vars(self)[name]

    put(cls, name, property(get, lambda self, given: vars(self).update({name: given})))


# Geometry.

geometry = area("geometry")
FUNCTIONS = "test_functional.py"


@geometry(FUNCTIONS, "attacks/test_fgm.py")
def ascent_goes_down():
    """Ascent steps go against the gradient."""
    around(functional(), "ascend", lambda old, x, grad, step, **how: old(x, grad, -step, **how))


@geometry(FUNCTIONS, "attacks/test_fgm.py")
def one_direction_for_the_batch():
    """All groups share one norm, so examples and positions are not normalized by themselves."""
    around(
        functional(),
        "steepest_direction",
        lambda old, grad, *, dims, norm="l2": old(grad, dims=tuple(range(grad.dim())), norm=norm),
    )


@geometry(FUNCTIONS, "attacks/test_fgm.py")
def sign_steps_are_normalized():
    """Steps for "linf" go along the normalized gradient, not along its sign."""
    around(functional(), "steepest_direction", lambda old, grad, *, dims, norm="l2": old(grad, dims=dims))


@geometry(FUNCTIONS, "attacks/test_precision.py")
def tiny_gradients_vanish():
    """Gradients below 1e-12 count as 0, so a confident model is not attacked."""
    around(functional(), "steepest_direction", lambda old, grad, **how: old(grad * (grad.abs() > 1e-12), **how))


@geometry(FUNCTIONS, "attacks/test_precision.py")
def bad_gradients_spread():
    """A group whose gradient is not finite gets a perturbation of NaN."""

    def direction(old, grad, *, dims, **how):
        peak = grad.abs().amax(dims, keepdim=True) if grad.numel() else grad
        return old(grad, dims=dims, **how).where(peak.isfinite(), grad.new_tensor(float("nan")))

    around(functional(), "steepest_direction", direction)


@geometry(FUNCTIONS, "attacks/test_precision.py")
def norms_in_half_precision():
    """Norms of half-precision values are half-precision numbers, which overflow."""
    around(functional(), "group_norm", lambda old, x, **how: old(x, **how).to(x.dtype))


@geometry(FUNCTIONS, "attacks/test_pgd.py")
def projection_left_out():
    """Perturbations leave their ball."""
    around(functional(), "project", lambda old, x, epsilon, **how: x)


@geometry(FUNCTIONS, "attacks/test_pgd.py")
def projection_onto_the_surface():
    """What is inside the ball is moved to its surface as well."""
    around(functional(), "project", lambda old, x, epsilon, **how: old(x * 1e6, epsilon, **how))


@geometry(FUNCTIONS, "attacks/test_pgd.py")
def random_starts_on_the_surface():
    """Random starts have the length of the radius."""

    def start(old, like, epsilon, *, norm="l2", **how):
        return functional().project(1e6 * old(like, epsilon, norm=norm, **how), epsilon, dims=how["dims"], norm=norm)

    around(functional(), "random_in_ball", start)


@geometry(FUNCTIONS, "attacks/test_pgd.py")
def random_starts_on_padding():
    """Random starts move elements that are not free."""
    around(functional(), "random_in_ball", lambda old, *args, free=None, **how: old(*args, **how))


# Divergences.

diverging = area("divergences")
TERMS = "test_divergences.py"


@diverging(TERMS)
def kl_in_one_direction():
    """The KL divergence is KL(p, q), never that of the other direction."""
    around(divergences(), "categorical", lambda old, p, q, **how: old(p, q, symmetric=None))


@diverging(TERMS)
def sum_of_directions_is_their_mean():
    """Both directions are averaged where they should be summed."""
    around(
        divergences(),
        "divergence",
        lambda old, p, q, *, symmetric="mean", **how: old(p, q, symmetric=symmetric and "mean", **how),
    )


@diverging(TERMS)
def bernoulli_is_halved():
    """The divergence of yes-or-no decisions is half as large."""
    around(divergences(), "bernoulli", lambda old, *args, **how: old(*args, **how) / 2)


@diverging(TERMS, "regularizers/test_rdrop.py")
def mask_does_not_count():
    """Masked values are averaged with the others."""
    around(divergences(), "reduce", lambda old, values, reduction="batchmean", mask=None: old(values, reduction))


@diverging(TERMS, "regularizers/test_rdrop.py")
def batchmean_divides_by_elements():
    """The reduction "batchmean" divides by the number of elements, as "mean" does."""
    around(
        divergences(),
        "reduce",
        lambda old, values, reduction="batchmean", mask=None: old(
            values, "mean" if reduction == "batchmean" else reduction, mask
        ),
    )


@diverging(TERMS)
def masked_positions_reach_the_gradient():
    """NaN at a masked position makes the divergence and its gradients NaN."""
    around(divergences(), "divergence", lambda old, p, q, **how: old(p, q, **how) + 0 * (p.sum() + q.sum()))


@diverging(TERMS, "regularizers/test_rdrop.py")
def divergence_in_half_precision():
    """Predictions in half precision have a divergence in half precision."""
    around(divergences(), "divergence", lambda old, p, q, **how: old(p, q, **how).to(p.dtype))


@diverging("regularizers/test_rdrop.py", "regularizers/test_smart.py", "regularizers/test_r3f.py")
def divergence_trains_one_prediction():
    """Gradients of a divergence reach the second prediction only."""
    around(divergences(), "divergence", lambda old, p, q, **how: old(p.detach(), q, **how))


# Batches.

batches = area("batches")


@batches("test_batch.py", "regularizers/test_rdrop.py", "test_company.py")
def second_copy_is_reversed():
    """The second copy in a doubled batch has the examples in reverse order."""

    def double(old, batch, *args, **kwargs):
        doubled, rows = old(batch, *args, **kwargs)
        if isinstance(doubled, dict):
            import torch

            for key, field in doubled.items():
                if isinstance(field, torch.Tensor) and field.dim():
                    doubled[key] = torch.cat([field[:rows], field[rows:].flip(0)])
        return doubled, rows

    around(batch(), "double_batch", double)


@batches("test_batch.py", "regularizers/test_rdrop.py")
def text_is_not_doubled():
    """Lists, as of raw text, stay as long as they were in a doubled batch."""

    def double(old, batch, *args, **kwargs):
        doubled, rows = old(batch, *args, **kwargs)
        if isinstance(batch, dict):
            doubled.update({key: field for key, field in batch.items() if isinstance(field, list)})
        return doubled, rows

    around(batch(), "double_batch", double)


@batches("test_batch.py", "regularizers/test_rdrop.py")
def outputs_are_those_of_the_second_half():
    """The outputs of a doubled batch are cut to its second half."""

    def half(old, value, rows):
        is_doubled = getattr(value, "ndim", 0) and len(value) == 2 * rows
        return value[rows:] if is_doubled else old(value, rows)

    around(batch(), "first_half", half)


@batches("test_batch.py", "attacks/test_fraction.py")
def part_is_of_other_examples():
    """A part of a batch has the examples that stand one place before those drawn."""
    import torch

    def take(old, batch, part, *args):
        rows = (part.rows(torch.device("cpu")) - 1) % part.of
        return old(batch, type(part)(rows, part.of), *args)

    around(batch(), "take_part", take)


@batches("test_batch.py", "regularizers/test_rdrop.py", "attacks/test_fraction.py", "callbacks/test_refusals.py")
def batches_are_refused_without_a_way_out():
    """Refusing a batch does not tell what to do."""
    without_way_out(batch(), "double_batch", "take_part")


# Random streams.

streams = area("random streams")


@streams("attacks/test_pgd.py", "test_method.py", "attacks/test_freelb.py")
def noise_from_the_default_generator():
    """Noise comes from the default generator, so it changes dropout masks and shuffling."""
    import torch

    around(random_state().Noise, "on", lambda old, self, device: torch.default_generator)


@streams("attacks/test_pgd.py", "attacks/test_freelb.py")
def noise_repeats():
    """Every step draws the same noise."""
    around(random_state().Noise, "on", lambda old, self, device: old(self, device).manual_seed(0))


@streams("test_method.py", "callbacks/test_resume.py")
def noise_is_not_saved():
    """A state does not say where the noise stands."""
    around(random_state().Noise, "state_dict", lambda old, self: dict.fromkeys(old(self)))


@streams("attacks/test_fraction.py")
def streams_are_alike():
    """The choice of examples and the noise draw the same numbers."""
    around(random_state().Noise, "__init__", lambda old, self, number=0: old(self))


@streams("attacks/test_fgm.py", "attacks/test_weights.py", "regularizers/test_vat.py")
def dropout_masks_are_drawn_anew():
    """Under `dropout_mask="same"` each pass draws its own mask."""
    for name in ("attacks.base", "method"):
        around(module(name), "same_dropout", lambda old, model: lambda: None)


# Attacks: what their passes are.

fgm = area("FGM and FGSM")


@fgm("attacks/test_fgm.py", "callbacks/test_equivalence.py")
def fgm_trains_twice_on_the_clean_input():
    """The adversarial pass of FGM runs without the perturbation."""

    def passes(old, self):
        for each in old(self):
            if each.adversarial:
                self.restore()
            yield each

    around(method("FGM"), "passes", passes)


@fgm("attacks/test_fgm.py", "callbacks/test_equivalence.py")
def fgm_trains_on_the_adversarial_input_only():
    """The clean pass of FGM gives no gradients to the parameters."""
    passes_of("FGM", change=lambda number, each: {} if number else {"trains": False})


@fgm("attacks/test_fgm.py", "callbacks/test_equivalence.py")
def fgm_replace_trains_on_both():
    """FGM with `replace` trains on the clean input as well."""
    acting("FGM", replace=lambda replace: False)


@fgm("attacks/test_fgm.py", "callbacks/test_equivalence.py")
def fgm_adv_weight_is_1():
    """The adversarial loss of FGM has the weight 1, whatever `adv_weight` is."""
    acting("FGM", adv_weight=lambda weight: 1.0)


@fgm("attacks/test_fgm.py", "callbacks/test_equivalence.py")
def fgm_epsilon_is_doubled():
    """FGM perturbs by twice `epsilon`."""
    acting("FGM", epsilon=lambda epsilon: 2 * epsilon)


@fgm("attacks/test_fgm.py", "callbacks/test_step.py")
def fgsm_takes_l2_steps():
    """FGSM takes the step of FGM."""
    acting("FGSM", norm=lambda norm: "l2")


@fgm("attacks/test_fgm.py")
def fgm_perturbs_examples_per_token():
    """The granularity "sequence" is that of "token"."""
    given(*methods("FGM"), granularity=lambda given: "token" if given == "sequence" else given)


pgd = area("PGD")


@pgd("attacks/test_pgd.py", "callbacks/test_equivalence.py")
def pgd_takes_one_step_less():
    """PGD takes one ascent step less than `steps`."""
    acting("PGD", steps=lambda steps: max(1, steps - 1))


@pgd("attacks/test_pgd.py", "callbacks/test_equivalence.py", "callbacks/test_warmup.py")
def pgd_alpha_is_not_scaled():
    """Without `alpha`, PGD takes steps of 0.3, whatever `epsilon` is."""
    acting("PGD", alpha=lambda alpha: 0.3 if alpha is None else alpha)


@pgd("attacks/test_pgd.py")
def pgd_starts_at_zero():
    """PGD ignores `random_init`."""
    acting("PGD", random_init=lambda given: False)


@pgd("attacks/test_pgd.py", "callbacks/test_equivalence.py")
def inner_gradients_point_down():
    """Gradients of inner passes come with the wrong sign."""
    inner_gradients(lambda grad: -grad)


@pgd("attacks/test_pgd.py", "callbacks/test_equivalence.py")
def pgd_inner_passes_train():
    """The inner passes of PGD give gradients to the parameters."""
    passes_of("PGD", change=lambda number, each: {"trains": True})


@pgd("attacks/test_inner_autocast.py")
def inner_autocast_is_ignored():
    """Inner passes run in the precision of the others."""
    acting("PGD", inner_autocast=lambda given: None)


others = area("FreeLB, TA-VAT, ATTA, NEFTune")


@others("attacks/test_freelb.py")
def freelb_adds_its_losses():
    """FreeLB sums the losses of its passes and does not average them."""
    passes_of("FreeLB", change=lambda number, each: {"weight": 1.0})


@others("attacks/test_freelb.py", "callbacks/test_warmup.py")
def freelb_starts_at_zero():
    """FreeLB starts without noise."""
    acting("FreeLB", init=lambda init: 0.0)


@others("attacks/test_freelb.py")
def freelb_has_no_ball():
    """FreeLB does not project back to its ball."""
    acting("FreeLB", epsilon=lambda epsilon: 0.0)


@others("attacks/test_freelb.py")
def tavat_has_no_ball():
    """TA-VAT does not keep an example's perturbation within its ball."""
    acting("TAVAT", epsilon=lambda epsilon: 0.0)


def _forgetting(name):
    def passes(old, self):
        before = self.state_dict()
        yield from old(self)
        self.load_state_dict(before)

    around(method(name), "passes", passes)


@others("attacks/test_freelb.py")
def tavat_forgets():
    """TA-VAT keeps no perturbation of tokens from step to step."""
    _forgetting("TAVAT")


@others("attacks/test_atta.py")
def atta_forgets():
    """ATTA keeps no perturbation of examples from epoch to epoch."""
    _forgetting("ATTA")


@others("attacks/test_atta.py")
def atta_has_no_ball():
    """ATTA's perturbations grow from epoch to epoch without a bound."""
    acting("ATTA", epsilon=lambda epsilon: 1e9)


@others("attacks/test_atta.py")
def atta_knows_examples_by_place():
    """ATTACallback takes examples for those that stood at their places in the batch."""
    around(
        in_fastnlp("ATTACallback"),
        "on_train_batch_begin",
        lambda old, self, trainer, batch, indices: old(self, trainer, batch, indices and list(range(len(indices)))),
    )


@others("attacks/test_neftune.py", "callbacks/test_warmup.py")
def neftune_noise_is_doubled():
    """NEFTune's noise is twice as large."""
    acting("NEFTune", alpha=lambda alpha: 2 * alpha)


on_weights = area("AWP and SAM")


@on_weights("attacks/test_weights.py")
def awp_gamma_is_doubled():
    """AWP moves the weights twice as far."""
    acting("AWP", gamma=lambda gamma: 2 * gamma)


@on_weights("attacks/test_weights.py")
def awp_replace_trains_on_both():
    """AWP with `replace` trains at the weights where they are as well."""
    acting("AWP", replace=lambda replace: False)


@on_weights("attacks/test_weights.py")
def awp_moves_everything():
    """AWP moves all parameters, whatever `params` is."""
    given(*methods("AWP"), params=lambda params: "*")


@on_weights("attacks/test_weights.py")
def sam_trains_on_both():
    """SAM adds the gradient at the weights where they are."""
    passes_of("SAM", change=lambda number, each: {"trains": True})


@on_weights("attacks/test_weights.py")
def sam_is_not_adaptive():
    """SAM with `adaptive` measures parameters in their own units all the same."""
    acting("SAM", adaptive=lambda adaptive: False)


@on_weights("attacks/test_weights.py", "attacks/test_interruption.py", "test_method.py")
def weights_are_rounded_when_restored():
    """AWP and SAM put weights back to a rounding error."""

    @contextmanager
    def moved(old, weights, backups):
        import torch

        try:
            with old(weights, backups):
                yield
        finally:
            with torch.no_grad():
                for weight in weights:
                    weight.mul_(1 + 2.0**-20)

    around(module("taps.weight"), "moved_weights", moved)


@on_weights("attacks/test_weights.py")
def half_precision_is_not_left():
    """Weights in half precision stay in it, and where they are."""
    around(module("taps.weight"), "in_single_precision", lambda old, model, values: nullcontext())


@on_weights("attacks/test_weights.py")
def random_rounding_is_to_the_nearest():
    """Weights in half precision are rounded to the nearest."""
    around(module("taps.weight"), "rounded_at_random", lambda old, x, dtype, stream: x)


# Attacks: what is perturbed, where, and by how much.

lookups = area("lookups and masks")


@lookups("attacks/test_fgm.py", "attacks/test_pgd.py")
def padding_is_perturbed():
    """Positions at `padding_idx` are perturbed, and count in norms."""
    from torch import nn

    as_seen_by_package(nn.Embedding, "padding_idx", None)


@lookups("attacks/test_lookups.py")
def frequencies_are_ignored():
    """The gradient of an embedding with `scale_grad_by_freq` is that of one without."""
    from torch import nn

    as_seen_by_package(nn.Embedding, "scale_grad_by_freq", False)


@lookups("attacks/test_lookups.py", "callbacks/test_refusals.py")
def max_norm_is_accepted():
    """An embedding whose lookups rewrite its rows is attacked."""
    from torch import nn

    as_seen_by_package(nn.Embedding, "max_norm", None)


@lookups("attacks/test_lookups.py", "test_architectures.py")
def scaled_lookups_are_not_scaled():
    """The perturbation of an embedding that scales its rows is not scaled."""
    from torch import nn

    as_seen_by_package(nn.Embedding, "embed_scale", 1.0)


@lookups("attacks/test_fgm.py", "attacks/test_attack_api.py", "attacks/test_other_weights.py")
def emb_name_is_ignored():
    """The input embedding is attacked, whatever `emb_name` is."""
    given(*on_embeddings(), emb_name=lambda given: None)


@lookups("attacks/test_relative.py")
def relative_is_ignored():
    """Lengths are in the units of the embedding, whatever `relative` is."""
    given(*on_embeddings(), relative=lambda given: False)


@lookups("attacks/test_fraction.py")
def fraction_takes_the_first():
    """The first examples of a batch are attacked, not some that are drawn."""

    def choose(old, self, examples):
        import torch

        return torch.arange(len(old(self, examples)))

    around_all(methods("FGM", "PGD"), "choose", choose)


@lookups("attacks/test_fraction.py")
def fraction_disorders():
    """A part of the batch has its examples in another order than the batch."""
    around_all(methods("FGM", "PGD"), "choose", lambda old, self, examples: old(self, examples).flip(0))


@lookups("attacks/test_fraction.py")
def fraction_from_the_default_generator():
    """The choice of examples changes dropout masks and shuffling."""

    def choose(old, self, examples):
        import torch

        return torch.randperm(examples)[: len(old(self, examples))].sort().values

    around_all(methods("FGM", "PGD"), "choose", choose)


# Attacks: restoring, and by hand.

restoring = area("restoring")


_kept = []


class _Unguarded:
    """A context manager that puts things back, but not if its block raises."""

    def __init__(self, old, *args, **kwargs):
        self.block = old(*args, **kwargs)
        _kept.append(self.block)  # or it would be closed

    def __enter__(self):
        return self.block.__enter__()

    def __exit__(self, kind, *error):
        return kind is None and self.block.__exit__(kind, *error)


@restoring("attacks/test_weights.py", "attacks/test_interruption.py", "callbacks/test_alongside.py")
def perturbation_stays_after_a_step():
    """A step leaves the perturbation on embeddings, and weights where it moved them."""

    @contextmanager
    def on(old, *args, **kwargs):
        _kept.append(old(*args, **kwargs))  # or it would be closed
        yield _kept[-1].__enter__()

    around(module("taps").Tap, "on", on)


@restoring("test_method.py", "callbacks/test_safety.py")
def failing_step_leaves_the_perturbation():
    """A step that raises leaves the perturbation on embeddings, and weights where it moved them."""
    around(module("taps").Tap, "on", _Unguarded)


@restoring("attacks/test_interruption.py", "attacks/test_attack_api.py")
def failing_block_leaves_the_perturbation():
    """A `with attack():` block that raises leaves the perturbation on."""
    for cls in methods("FGM", "PGD"):
        around(cls, "attack", _Unguarded)


@restoring("attacks/test_attack_api.py", "attacks/test_plain_loop.py")
def restore_does_nothing():
    """`restore()` leaves the perturbation on."""
    around_all(methods("FGM", "PGD"), "restore", lambda old, self, emb_name=None: None)


@restoring("attacks/test_attack_api.py")
def restore_takes_all_off():
    """`restore(emb_name)` takes off the perturbations of all embeddings."""
    around_all(methods("FGM", "PGD"), "restore", lambda old, self, emb_name=None: old(self))


@restoring("attacks/test_attack_api.py", "test_method.py")
def hooks_are_left_on():
    """Hooks stay on the model when they should be taken off."""
    from torch.utils.hooks import RemovableHandle

    around(RemovableHandle, "remove", unless_asked_by_package(None))


@restoring("attacks/test_attack_api.py")
def detaching_leaves_the_perturbation():
    """Taking a method off the model leaves its perturbation and its hooks."""
    around_all(attacks(), detach(), lambda old, self: None)


by_hand = area("plain loops")


@by_hand("attacks/test_attack_api.py")
def attack_ignores_its_epsilon():
    """`attack(epsilon)` perturbs by the epsilon of the constructor."""
    around(method("FGM"), "attack", lambda old, self, epsilon=None, *args, **kwargs: old(self, None, *args, **kwargs))


@by_hand("attacks/test_attack_api.py")
def attack_ignores_its_emb_name():
    """`attack(emb_name=...)` perturbs all embeddings."""
    around(
        method("FGM"), "attack", lambda old, self, epsilon=None, emb_name=None, **kwargs: old(self, epsilon, **kwargs)
    )


@by_hand("attacks/test_attack_api.py", "attacks/test_fgm.py", "attacks/test_plain_loop.py", "attacks/test_freelb.py")
def step_returns_the_last_loss():
    """`step(closure)` returns the loss of the last pass."""

    def step(old, self, closure, *args, **kwargs):
        losses = []

        def noting(*fields):
            losses.append(closure(*fields))
            return losses[-1]

        old(self, noting, *args, **kwargs)
        return losses[-1].detach()

    around_all(methods("FGM", "PGD", "FreeLB"), "step", step)


@by_hand("attacks/test_fgm.py", "callbacks/test_step.py")
def perturbation_norm_is_that_of_the_gradient():
    """`perturbation_norm` is the norm of the gradient."""
    for cls in attacks():
        put(cls, "perturbation_norm", property(lambda self: self.grad_norm))


@by_hand("attacks/test_precision.py", "attacks/test_weights.py", "callbacks/test_step.py")
def skipped_attacks_are_not_counted():
    """`skipped` stays 0."""
    for cls in attacks():
        put(cls, "skipped", property(lambda self: 0))


@by_hand("attacks/test_attack_api.py", "attacks/test_refusals.py", "attacks/test_fraction.py")
def attacks_too_early_have_no_way_out():
    """An attack without a gradient does not tell what to do."""
    for cls in methods("FGM", "PGD"):
        without_way_out(cls, "attack", "step")


# Regularizers.

rdrop = area("R-Drop")
BOTH = ("regularizers/test_rdrop.py", "callbacks/test_rdrop_callback.py")


@rdrop(*BOTH)
def rdrop_loss_is_doubled():
    """R-Drop returns twice the loss."""

    def call(old, self, *args, **kwargs):
        outputs = old(self, *args, **kwargs)
        return {**outputs, "loss": 2 * outputs["loss"]}

    around(method("RDrop"), "__call__", call)


@rdrop(*BOTH)
def rdrop_term_trains_nothing():
    """The divergence of R-Drop is in the loss, but has no gradient."""

    def call(old, self, *args, **kwargs):
        weight, vars(self)["kl_weight"] = self.kl_weight, 0.0
        try:
            outputs = old(self, *args, **kwargs)
        finally:
            vars(self)["kl_weight"] = weight
        return {**outputs, "loss": outputs["loss"] + weight * outputs["kl"]}

    around(method("RDrop"), "__call__", call)


@rdrop(*BOTH)
def rdrop_runs_the_doubled_batch():
    """R-Drop runs in the mode "concat", whatever `mode` is."""
    acting("RDrop", mode=lambda mode: "concat")


@rdrop(*BOTH)
def rdrop_reduction_is_batchmean():
    """R-Drop ignores `reduction`."""
    acting("RDrop", reduction=lambda reduction: "batchmean")


@rdrop(*BOTH)
def rdrop_counts_unlabelled_positions():
    """Positions without a label count in R-Drop's divergence."""
    acting(
        "RDrop",
        mask=lambda mask: (
            (lambda batch, outputs: outputs["pred"].new_ones(outputs["pred"].shape[:-1])) if mask is None else mask
        ),
    )


@rdrop(*BOTH)
def rdrop_ignores_its_mask():
    """R-Drop ignores `mask`."""
    acting("RDrop", mask=lambda mask: None)


@rdrop("callbacks/test_rdrop_callback.py", "test_company.py", "attacks/test_lookups.py")
def second_forward_of_rdrop_is_clean():
    """Under an attack, the second forward of R-Drop runs without the perturbation."""
    from torch import nn

    hooked = WeakSet()

    def register(old, self, *args, **kwargs):
        if asked_by_package():
            hooked.add(self)
        return old(self, *args, **kwargs)

    def call(old, self, objective, batch, forward=None):
        number = count()

        def clean_the_second_time(batch):
            if next(number) == 0:
                return objective(batch)
            hooks = {each: vars(each)["_forward_hooks"] for each in hooked}
            for each in hooks:
                vars(each)["_forward_hooks"] = type(hooks[each])()
            try:
                return objective(batch)
            finally:
                for each in hooks:
                    vars(each)["_forward_hooks"] = hooks[each]

        return old(self, clean_the_second_time, batch, forward)

    around(nn.Module, "register_forward_hook", register)
    around(method("RDrop"), "__call__", call)


@rdrop(*BOTH, "callbacks/test_step.py")
def missing_dropout_is_not_noticed():
    """A model without dropout is taken for one with it."""
    around(module("regularizers"), "has_dropout", lambda old, model: True)


@rdrop("regularizers/test_misuse.py", "regularizers/test_rdrop.py")
def misuse_is_not_told():
    """The package warns of nothing."""
    around(importlib.import_module("warnings"), "warn", unless_asked_by_package(None))


@rdrop("regularizers/test_rdrop.py")
def refused_outputs_have_no_way_out():
    """R-Drop does not tell what to do about outputs that it cannot use."""
    without_way_out(method("RDrop"), "__call__")


mixin = area("R-Drop in a model")
MIXIN = "regularizers/test_rdrop_mixin.py"


def _steps_of_models(wrap, name="train_step"):
    """Wrap a step of every model with RDropMixin."""
    cls = method("RDropMixin")
    old = cls.__init_subclass__.__func__

    def init_subclass(model, **kwargs):
        old(model, **kwargs)
        if name in vars(model):
            setattr(model, name, wrap(vars(model)[name]))

    put(cls, "__init_subclass__", classmethod(init_subclass))


@mixin(MIXIN, "callbacks/test_rdrop_callback.py")
def mixin_runs_once():
    """A model with RDropMixin trains without R-Drop."""

    def wrap(step):
        @functools.wraps(step)
        def train_step(self, *args, **kwargs):
            with self.rdrop_as(None):
                return step(self, *args, **kwargs)

        return train_step

    _steps_of_models(wrap)


@mixin(MIXIN)
def mixin_hides_the_signature():
    """`train_step` of a model with RDropMixin has lost its parameters, by which fastNLP chooses fields."""
    _steps_of_models(lambda step: lambda self, *args, **kwargs: step(self, *args, **kwargs))


@mixin(MIXIN)
def mixin_evaluates_twice():
    """A model with RDropMixin runs twice in evaluation too."""

    def wrap(step):
        @functools.wraps(step)
        def evaluate_step(self, *args, **kwargs):
            step(self, *args, **kwargs)
            return step(self, *args, **kwargs)

        return evaluate_step

    _steps_of_models(wrap, "evaluate_step")


@mixin(MIXIN)
def mixin_weight_is_1():
    """A model with RDropMixin ignores `rdrop_kl_weight`."""
    given(*methods("RDrop"), kl_weight=lambda weight: 1.0)


@mixin(MIXIN, "callbacks/test_safety.py")
def rdrop_as_outlives_an_error():
    """A model keeps the settings of `rdrop_as` when the block raises."""
    around(method("RDropMixin"), "rdrop_as", _Unguarded)


smoothness = area("VAT, SMART, R3F, gradient penalty")


@smoothness("regularizers/test_vat.py")
def vat_takes_one_step():
    """VAT takes one power iteration, whatever `steps` is."""
    acting("VAT", steps=lambda steps: 1)


@smoothness("regularizers/test_vat.py")
def vat_stays_at_xi():
    """VAT compares at the distance `xi`, not at `epsilon`."""
    acting("VAT", epsilon=lambda epsilon: 1e-2)


@smoothness("regularizers/test_masks.py")
def smoothness_ignores_its_mask():
    """VAT, SMART and R3F ignore `mask`."""
    for name in ("VAT", "SMART", "R3F"):
        acting(name, mask=lambda mask: None)


@smoothness("regularizers/test_smart.py")
def smart_has_no_ball():
    """SMART does not keep coordinates within `epsilon`."""
    acting("SMART", epsilon=lambda epsilon: 1e9)


@smoothness("regularizers/test_smart.py")
def smart_does_not_average():
    """The average of the weights stays where it was at first."""
    around(method("SMART"), "after_step", lambda old, self: None)


@smoothness("regularizers/test_smart.py")
def smart_has_no_bregman_term():
    """SMART ignores `bregman_weight`."""
    acting("SMART", bregman_weight=lambda weight: 0.0)


@smoothness("regularizers/test_r3f.py")
def r3f_noise_is_normal():
    """R3F draws normal noise, whatever `noise` is."""
    acting("R3F", noise=lambda noise: "normal")


@smoothness("regularizers/test_gradient_penalty.py")
def penalty_trains_nothing():
    """The gradient penalty is in the loss, but has no gradient."""
    inner_gradients(lambda grad: grad.detach().requires_grad_(), of_graphs=True)


@smoothness("regularizers/test_gradient_penalty.py")
def penalty_is_doubled():
    """The gradient penalty counts twice."""
    acting("GradientPenalty", weight=lambda weight: 2 * weight)


# Callbacks.

schedule = area("schedule")


@schedule("callbacks/test_step.py", "callbacks/test_all_callbacks.py")
def start_is_one_late():
    """Methods begin one optimizer step after `start`."""
    given(*callbacks(), start=lambda start: start + 1 if start >= 1 else start)


@schedule("callbacks/test_step.py")
def start_as_a_fraction_is_ignored():
    """A `start` below 1 is that of the first step."""
    given(*callbacks(), start=lambda start: start if start >= 1 else 0)


@schedule("callbacks/test_step.py", "callbacks/test_all_callbacks.py")
def start_counts_batches():
    """`start` counts batches, not optimizer steps."""

    def begin(old, self, trainer):
        if self.start >= 1:
            self.start = self.start // trainer.accumulation_steps
        old(self, trainer)

    around_all(callbacks(), "on_train_begin", begin)


@schedule("callbacks/test_step.py", "test_guards.py")
def every_is_ignored():
    """Methods act in every optimizer step, whatever `every` is."""
    given(*callbacks(), every=lambda every: 1)


@schedule("callbacks/test_warmup.py")
def warmup_is_ignored():
    """Perturbations have their whole length from the first step, whatever `warmup` is."""
    for cls in attacks():
        put(cls, "strength", property(lambda self: 1.0, lambda self, given: None))


@schedule("callbacks/test_warmup.py")
def warmup_is_half_as_long():
    """Perturbations grow twice as fast."""
    names = [cls for cls in callbacks() if "warmup" in inspect.signature(cls).parameters]
    given(*names, warmup=lambda warmup: warmup / 2)


pacing = area("warmup by the loss")


@pacing("test_schedule.py")
def auto_is_whole_at_once():
    """`warmup="auto"` has the whole perturbation after the first steps."""
    around(module("schedule").Pacing, "strength", lambda old, self: 1.0 if self.first else 0.0)


@pacing("test_schedule.py")
def auto_begins_at_once():
    """`warmup="auto"` has no plain steps."""
    around(module("schedule").Pacing, "strength", lambda old, self: old(self) if self.first else 0.01)


@pacing("test_schedule.py")
def auto_never_grows():
    """`warmup="auto"` stays at no perturbation."""
    around(module("schedule").Pacing, "strength", lambda old, self: 0 * old(self))


@pacing("test_schedule.py")
def auto_counts_micro_batches():
    """`warmup="auto"` takes each micro-batch for an optimizer step."""
    numbers = count()
    around(module("schedule").Pacing, "note", lambda old, self, loss, step: old(self, loss, next(numbers)))


@pacing("test_schedule.py")
def auto_follows_losses_that_are_not_finite():
    """A loss that is not finite spoils the strength for good."""
    around(module("schedule").Pacing, "note", lambda old, self, loss, step: old(self, loss.nan_to_num(9.0), step))


@pacing("test_schedule.py")
def auto_is_not_saved():
    """A resumed training begins to follow the loss anew."""
    around(module("schedule").Pacing, "load_state_dict", lambda old, self, state, device: None)


@pacing("test_schedule.py")
def auto_follows_the_adversarial_loss():
    """`warmup="auto"` follows the last loss of a batch."""

    def observe(old, self, loss, each):
        old(self, loss, each)
        self.current.loss = loss.detach()

    around(method("Attack"), "observe", observe)


@pacing("distributed")
def auto_differs_between_ranks():
    """Each rank follows the loss of its own."""
    around(module("schedule"), "mean_over_processes", lambda old, loss: loss)


in_loops = area("schedules and models of one's own")


@in_loops("test_schedule.py")
def loops_do_not_count():
    """Every batch of a loop is the first."""

    def begin(old, self, *told):
        old(self, *told)
        self.batches = 0

    around(module("schedule").Progress, "begin_batch", begin)


@in_loops("test_schedule.py")
def loops_do_not_accumulate():
    """A loop's `accumulation_steps` are ignored."""
    around(module("schedule").Progress, "begin_batch", lambda old, self, steps, total: old(self, 1, total))


@in_loops("test_schedule.py")
def passes_are_batches_of_a_regularizer():
    """A regularizer counts each pass of an attack."""
    around(module("forwards"), "Batch", lambda old, data=None: None)


@in_loops("test_schedule.py")
def fractions_are_guessed():
    """Where a loop does not tell its steps, they are taken to be 1000."""
    around(module("schedule").Progress, "begin_batch", lambda old, self, steps, total: old(self, steps, total or 1000))


@in_loops("test_schedule.py")
def attack_leaves_no_step_out_in_silence():
    """`attack()` ignores `start` and `every` without a word."""
    for cls in methods("FGM", "PGD"):
        given(cls, start=lambda start: 0, every=lambda every: 1)


@in_loops("test_unattached.py")
def attaching_forgets():
    """A state that is loaded before attaching is lost."""
    around(
        module("model_method").ModelMethod,
        "attach",
        lambda old, self, model: [setattr(self, "_remembered", None), old(self, model)][1],
    )


@in_loops("test_unattached.py")
def detaching_forgets():
    """Detaching loses what a method remembers."""

    def detach(old, self):
        old(self)._remembered = None
        return self

    around(module("model_method").ModelMethod, "detach", detach)


@in_loops("test_unattached.py")
def another_training_goes_on_with_the_memory_of_the_first():
    """A callback takes what it remembers to another Trainer."""
    around(module("model_method").ModelMethod, "forget", lambda old, self: self)


@in_loops("test_unattached.py")
def hooks_are_rebuilt_in_silence():
    """`emb_name` of an attached method can be assigned, to no effect."""
    around(module("model_method").ModelMethod, "check_change", lambda old, self, name, value: None)


@in_loops("test_unattached.py")
def misspelt_arguments_are_kept():
    """Assigning a misspelt argument makes an attribute."""
    around(module("options"), "check_assignment", lambda old, owner, names, name: None)


@in_loops("test_unattached.py", "test_schedule.py")
def unattached_methods_have_no_way_out():
    """Running an unattached method does not tell what to do."""
    cls = module("model_method").ModelMethod
    attached = vars(cls)["attached"].fget

    def get(self):
        try:
            return attached(self)
        except RuntimeError as error:
            raise RuntimeError(str(error).split(". ")[0]) from None

    put(cls, "attached", property(get))


trainers = area("Trainer")


@trainers("callbacks/test_all_callbacks.py")
def hooks_fire_in_every_pass():
    """`on_before_backward` and `on_after_backward` fire in every pass of a batch."""
    from fastNLP import Trainer
    from fastNLP.core.drivers.torch_driver.torch_driver import TorchDriver

    latest = {}

    def before(old, trainer, outputs):
        latest.update(trainer=trainer, outputs=outputs, passes=0)
        old(trainer, outputs)

    def backward(old, driver, loss):
        again, trainer = latest.get("passes", 0) > 0, latest.get("trainer")
        if again:
            trainer.callback_manager.on_before_backward(trainer, latest["outputs"])
        old(driver, loss)
        if again:
            trainer.callback_manager.on_after_backward(trainer)
        latest["passes"] = latest.get("passes", 0) + 1

    around(Trainer, "on_before_backward", before)
    around(TorchDriver, "backward", backward)


@trainers("callbacks/test_equivalence.py", "callbacks/test_rdrop_callback.py")
def adversarial_loss_is_not_divided():
    """With accumulation, the adversarial loss counts as much as those of all micro-batches."""
    from fastNLP import Trainer

    running = {"accumulation": 1}

    def run(old, trainer, *args, **kwargs):
        running["accumulation"] = trainer.accumulation_steps
        old(trainer, *args, **kwargs)

    around(Trainer, "run", run)
    passes_of(
        "FGM",
        "PGD",
        change=lambda number, each: {"weight": each.weight * running["accumulation"]} if each.adversarial else {},
    )


@trainers("callbacks/test_step.py", "callbacks/test_all_callbacks.py", "callbacks/test_alongside.py")
def reported_loss_is_adversarial():
    """`trainer.state["adv"]["loss"]` is the adversarial loss."""
    in_state(lambda trainer, state: state.update(loss=state.get("adv_loss", state.get("loss"))))


@trainers("callbacks/test_step.py")
def terms_are_not_reported():
    """The terms of regularizers are not in `trainer.state["adv"]`."""
    names = ("kl", "vat", "smart", "bregman", "r3f", "gradient_penalty")
    in_state(lambda trainer, state: [state.pop(name, None) for name in names])


@trainers("callbacks/test_step.py", "callbacks/test_rdrop_callback.py")
def divergence_is_reported_doubled():
    """The divergence in `trainer.state["adv"]` is twice as large."""
    in_state(lambda trainer, state: state.update({"kl": 2 * state["kl"]} if "kl" in state else {}))


@trainers("callbacks/test_step.py", "test_fp16.py")
def reported_gradient_is_that_of_the_divided_loss():
    """With accumulation, the norm of the gradient in `trainer.state["adv"]` is too small."""
    in_state(
        lambda trainer, state: state.update(
            {"grad_norm": state["grad_norm"] / trainer.accumulation_steps} if "grad_norm" in state else {}
        )
    )


@trainers("callbacks/test_step.py", "callbacks/test_elsewhere.py", "test_fp16.py")
def skipped_attacks_are_not_reported():
    """`trainer.state["adv"]["skipped"]` stays 0."""
    in_state(lambda trainer, state: state.update({"skipped": 0} if "skipped" in state else {}))


@trainers("test_fp16.py")
def inner_losses_are_not_scaled():
    """Under loss scaling, inner passes compute gradients of the bare loss."""
    import torch

    scaler = torch.amp.GradScaler if hasattr(torch.amp, "GradScaler") else torch.cuda.amp.GradScaler
    around(scaler, "scale", lambda old, self, loss: loss if asked_by_package() else old(self, loss))


@trainers("callbacks/test_all_callbacks.py", "callbacks/test_step.py", "callbacks/test_safety.py")
def training_does_not_end():
    """Methods stay in the Trainer when training has ended."""
    around_all(callbacks(), "on_train_end", lambda old, self, trainer: None)


@trainers("callbacks/test_step.py", "callbacks/test_warmup.py")
def assigned_arguments_reach_no_method():
    """Arguments that are assigned to a callback in training have no effect."""
    for cls in callbacks():
        put(cls, "__setattr__", object.__setattr__)


@trainers("callbacks/test_refusals.py", "callbacks/test_all_callbacks.py")
def trainers_are_not_checked():
    """Nothing is checked when a Trainer is built."""
    around_all(callbacks(), "on_after_trainer_initialized", lambda old, self, trainer, driver: None)


@trainers("callbacks/test_refusals.py", "callbacks/test_all_callbacks.py", "attacks/test_atta.py")
def refused_trainers_have_no_way_out():
    """Refusing a Trainer does not tell what to do."""
    for owner in {next(b for b in c.__mro__ if "on_after_trainer_initialized" in vars(b)) for c in callbacks()}:
        without_way_out(owner, "on_after_trainer_initialized", "on_train_begin")


in_transformers = area("transformers' Trainer")


def of_transformers() -> ModuleType:
    return importlib.import_module(PACKAGE + ".trainers.transformers")


@in_transformers("trainers/test_by_hand.py")
def every_pass_of_transformers_reduces():
    """Every pass in transformers' Trainer reduces gradients, not only the last one."""
    accelerator = importlib.import_module("accelerate").Accelerator
    around(accelerator, "no_sync", lambda old, self, model: nullcontext())


@in_transformers("trainers/test_by_hand.py", "trainers/test_trainer.py")
def checkpoints_of_transformers_hold_no_methods():
    """Checkpoints of transformers' Trainer have no state of the methods."""
    around(
        of_transformers().torch,
        "save",
        lambda old, state, file, **kw: "methods_" in str(file) or old(state, file, **kw),
    )


@in_transformers("trainers/test_trainer.py")
def transformers_logs_no_methods():
    """transformers' Trainer does not log losses and norms of methods."""
    mixin = of_transformers().MethodsMixin

    def log(old, self, logs, *args, **kwargs):
        before = dict(self.adv)
        self.adv.clear()
        try:
            return old(self, logs, *args, **kwargs)
        finally:
            self.adv.update(before)

    around(mixin, "log", log)


@in_transformers("trainers/test_trainer.py")
def sharded_training_of_transformers_is_accepted():
    """transformers' Trainer takes methods under FSDP and DeepSpeed, which cannot work."""
    for name in ("is_fsdp_enabled", "is_deepspeed_enabled"):
        put(
            importlib.import_module("transformers").Trainer,
            name,
            property(lambda self: False, lambda self, value: None),
        )


options = area("arguments")


@options("test_options.py")
def arguments_are_not_checked():
    """Arguments out of range are taken."""
    for cls in [*attacks(), *methods("RDrop", "VAT", "SMART", "R3F", "GradientPenalty")]:
        put(cls, "__setattr__", object.__setattr__)


@options("test_options.py", "attacks/test_inner_autocast.py", "attacks/test_fraction.py")
def refused_arguments_have_no_way_out():
    """Refusing arguments of an attack does not tell what to do."""
    for cls in methods("FGM", "PGD", "AWP"):
        without_way_out(cls, "__init__")


saying = area("messages and logs")


@saying("callbacks/test_step.py", "callbacks/test_warmup.py", "attacks/test_weights.py", "attacks/test_relative.py")
def first_line_is_missing():
    """Nothing says what is perturbed when training begins."""
    around_all(attacks(), "describe", lambda old, self: "")


@saying("callbacks/test_step.py", "attacks/test_relative.py", "callbacks/test_warmup.py")
def first_line_has_one_unit():
    """The first line gives epsilon in one unit only."""
    around_all(on_embeddings(), "describe", lambda old, self: re.sub(r" = [\d.e-]+( rows)?", "", old(self)))


@saying("callbacks/test_learning.py", "callbacks/test_step.py", "callbacks/test_rdrop_callback.py")
def warnings_are_not_logged():
    """Warnings do not reach fastNLP's log."""
    from fastNLP import logger

    around(logger, "rank_zero_warning", unless_asked_by_package(None))


@saying("callbacks/test_learning.py", "callbacks/test_step.py", "callbacks/test_rdrop_callback.py")
def warnings_have_no_way_out():
    """Warnings in fastNLP's log do not tell what to do."""
    from fastNLP import logger

    around(
        logger,
        "rank_zero_warning",
        lambda old, text, *args, **kwargs: old(re.sub(r"[.:] .*", ".", text, flags=re.DOTALL), *args, **kwargs),
    )


@saying("callbacks/test_step.py", "callbacks/test_log_callback.py")
def log_callback_writes_nothing():
    """LogCallback writes nothing."""
    around(in_fastnlp("LogCallback"), "on_train_batch_end", lambda old, self, trainer: None)


@saying("callbacks/test_log_callback.py")
def log_callback_reads_every_batch():
    """LogCallback reads the device in every batch, whatever `every` is."""
    given(in_fastnlp("LogCallback"), every=lambda every: 1)


# Checkpoints.

checkpoints = area("checkpoints")


@checkpoints("callbacks/test_resume.py", "callbacks/test_learning.py")
def checkpoints_hold_nothing():
    """A checkpoint does not hold what methods remember."""
    around_all(callbacks(), "on_save_checkpoint", lambda old, self, trainer: {})


@checkpoints("callbacks/test_resume.py", "callbacks/test_learning.py")
def checkpoints_are_not_read():
    """A resumed training does not take what methods remembered."""
    around_all(callbacks(), "on_load_checkpoint", lambda old, self, trainer, states: None)


@checkpoints("test_method.py", "callbacks/test_resume.py")
def tavat_and_atta_resume_empty():
    """TA-VAT and ATTA do not take the perturbations of a state."""
    for cls in methods("TAVAT", "ATTA"):
        put(cls, "load_state_dict", lambda self, state: None)


@checkpoints("test_method.py", "callbacks/test_resume.py")
def smart_resumes_without_its_average():
    """SMART does not take the average of a state."""
    around(method("SMART"), "load_state_dict", lambda old, self, state: None)


@checkpoints("attacks/test_relative.py", "callbacks/test_warmup.py", "attacks/test_fraction.py")
def attacks_resume_from_the_seed():
    """FGM and PGD take neither streams nor units of a state."""
    for cls in methods("FGM", "PGD"):
        put(cls, "load_state_dict", lambda self, state: None)


@checkpoints("callbacks/test_compiled.py", "callbacks/test_safety.py", "attacks/test_interruption.py")
def copies_are_perturbed_as_well():
    """A copy of the model that is made in a step has hooks that act, or cannot be saved."""
    from torch import nn

    def register(old, self, hook, **kwargs):
        acting = (lambda module, *rest: hook(self, *rest)) if asked_by_package() else hook
        return old(self, acting, **kwargs)

    around(nn.Module, "register_forward_hook", register)


# Distributed training.

distributed = area("distributed training")
DDP = "distributed/test_ddp.py"


@distributed(DDP)
def no_sync_is_left_out():
    """Every backward pass reduces the gradients."""
    from fastNLP.core.drivers.torch_driver import TorchDDPDriver

    around(TorchDDPDriver, "get_model_no_sync_context", unless_asked_by_package(nullcontext))


@distributed(DDP)
def every_pass_is_the_last():
    """Every pass that trains takes itself for the one that reduces the gradients."""
    passes_of("FGM", "PGD", "FreeLB", change=lambda number, each: {"last": True})


@distributed(DDP)
def only_the_first_rank_is_attacked():
    """Ranks other than the first train plainly."""
    import torch.distributed as dist

    def ascend(old, x, grad, step, **how):
        alone = not dist.is_initialized() or dist.get_rank() == 0
        return old(x, grad, step if alone else 0.0, **how)

    around(functional(), "ascend", ascend)


# Repairs of fastNLP.

compat = area("repairs")
REPAIRS = "test_compat.py"


def _left_out(name):
    repairs = module("compat.repairs")
    put(repairs, "REPAIRS", {other: make for other, make in repairs.REPAIRS.items() if other != name})


@compat(REPAIRS)
def importing_repairs():
    """Importing the package repairs fastNLP, without being asked."""
    module("compat").repair()


@compat(REPAIRS)
def prefetch_factor_is_not_repaired():
    """fastNLP's dataloaders fail with their defaults."""
    _left_out("prefetch_factor")


@compat(REPAIRS)
def save_to_new_folder_is_not_repaired():
    """A model cannot be saved into a folder that does not exist."""
    _left_out("save_to_new_folder")


@compat(REPAIRS)
def finished_epoch_is_not_repaired():
    """An epoch is trained again when training resumes at its end."""
    _left_out("finished_epoch")


@compat(REPAIRS)
def resume_again_is_not_repaired():
    """A training that resumed in an epoch loses its place when it resumes there again."""
    _left_out("resume_again")


@compat(REPAIRS)
def load_arrays_is_not_repaired():
    """Checkpoints with arrays in them are refused."""
    _left_out("load_arrays")


# Evaluation under attack.

evaluation = area("robust evaluation")
EVALUATE = "robustness/test_evaluate.py"
EVALUATION_CALLBACK = "callbacks/test_robust_evaluate.py"


def _evaluating(**changes):
    def evaluate(old, *args, **kwargs):
        bound = inspect.signature(old).bind(*args, **kwargs)
        bound.apply_defaults()
        bound.arguments.update({name: change(bound.arguments[name]) for name, change in changes.items()})
        return old(*bound.args, **bound.kwargs)

    around(robustness(), "robust_evaluate", evaluate)


@evaluation(EVALUATE)
def evaluation_takes_one_step():
    """`robust_evaluate` takes one ascent step, whatever `steps` is."""
    _evaluating(steps=lambda steps: 1)


@evaluation(EVALUATE)
def evaluation_starts_once():
    """`robust_evaluate` has one start, whatever `restarts` is."""
    _evaluating(restarts=lambda restarts: 1)


@evaluation(EVALUATE)
def evaluation_is_never_relative():
    """`robust_evaluate` takes radii in the units of the embedding, whatever `relative` is."""
    _evaluating(relative=lambda relative: False)


@evaluation(EVALUATE)
def evaluation_has_one_seed():
    """`robust_evaluate` ignores `seed`."""
    _evaluating(seed=lambda seed: 0)


@evaluation(EVALUATE)
def evaluation_leaves_eval_mode():
    """`robust_evaluate` leaves the model in eval mode."""

    def evaluate(old, model, *args, **kwargs):
        try:
            return old(model, *args, **kwargs)
        finally:
            model.eval()

    around(robustness(), "robust_evaluate", evaluate)


@evaluation(EVALUATE)
def evaluation_metrics_see_the_clean_batch():
    """`update` of `robust_evaluate` gets the clean outputs at every epsilon."""

    def cleanly(update):
        clean = {}

        def changed(epsilon, outputs, batch):
            clean["outputs"] = outputs if epsilon == 0 else clean["outputs"]
            update(epsilon, clean["outputs"], batch)

        return update and changed

    _evaluating(update=cleanly)


@evaluation(EVALUATE, EVALUATION_CALLBACK)
def evaluation_reports_the_clean_accuracy():
    """Accuracies under attack are those of the clean input."""

    def evaluate(old, *args, **kwargs):
        found = old(*args, **kwargs)
        for each in found.values():
            each.update({name: found[0.0][name] for name in each if name == "accuracy"})
        return found

    around(robustness(), "robust_evaluate", evaluate)


@evaluation(EVALUATION_CALLBACK)
def evaluation_callback_does_not_attack():
    """RobustEvaluateCallback evaluates at a radius of almost 0."""
    given(in_fastnlp("RobustEvaluateCallback"), epsilon=lambda epsilon: epsilon * 1e-6)


@evaluation(EVALUATION_CALLBACK)
def evaluation_callback_ignores_its_data():
    """RobustEvaluateCallback takes the Trainer's data and metrics, whatever it is given."""
    given(in_fastnlp("RobustEvaluateCallback"), dataloaders=lambda given: None, metrics=lambda given: None)


@evaluation(EVALUATE)
def refused_evaluation_has_no_way_out():
    """`robust_evaluate` does not tell what to do about what it refuses."""
    without_way_out(robustness(), "robust_evaluate")


@evaluation(EVALUATION_CALLBACK)
def refused_evaluation_in_training_has_no_way_out():
    """RobustEvaluateCallback does not tell what to do about a Trainer that it refuses."""
    without_way_out(in_fastnlp("RobustEvaluateCallback"), "on_after_trainer_initialized")


texts = area("attacked texts")
HOTFLIP, TYPOS = "robustness/test_hotflip.py", "robustness/test_typos.py"


@texts(HOTFLIP)
def best_flip_is_not_tried():
    """HotFlip leaves out the flip that promises most."""
    around(robustness().HotFlip, "propose", lambda old, self, search: old(self, search)[1:])


@texts(HOTFLIP)
def one_flip_too_many():
    """HotFlip flips one word more than `max_flips`."""
    given(robustness().HotFlip, max_flips=lambda number: number + 1 if isinstance(number, int) else number)


@texts(HOTFLIP)
def similarity_is_ignored():
    """HotFlip ignores `min_similarity`."""
    given(robustness().HotFlip, min_similarity=lambda given: None)


@texts(TYPOS)
def typos_have_one_seed():
    """Typos ignores `seed`."""
    given(robustness().Typos, seed=lambda seed: 0)


@texts(TYPOS, "robustness/test_chinese.py")
def typos_are_of_all_kinds():
    """Typos ignores `slips`."""
    slips = inspect.signature(robustness().Typos).parameters["slips"].default
    given(robustness().Typos, slips=lambda given: slips)


@texts(HOTFLIP, TYPOS)
def attacking_texts_leaves_eval_mode():
    """HotFlip and Typos leave the model in eval mode."""

    def attack(old, self, *args, **kwargs):
        from torch import nn

        try:
            return old(self, *args, **kwargs)
        finally:
            for model in [each for each in vars(self).values() if isinstance(each, nn.Module)]:
                model.eval()

    around_all([robustness().HotFlip, robustness().Typos], "attack", attack)


@texts(HOTFLIP, TYPOS)
def refused_texts_have_no_way_out():
    """HotFlip and Typos do not tell what to do about what they refuse."""
    for cls in (robustness().HotFlip, robustness().Typos):
        without_way_out(cls, "__init__", "attack")


@texts("robustness/test_attacked.py", "robustness/test_chinese.py")
def texts_that_were_not_attacked_are_robust():
    """Texts on which nothing could be tried count as robust."""

    def accuracy(old, results):
        found = old(results)
        return type(found)(sum(r.was_right and not r.fooled for r in results) / len(results), 0, len(results))

    around(robustness(), "robust_accuracy", accuracy)


@texts("robustness/test_words.py", "robustness/test_chinese.py")
def tokens_stand_one_further():
    """VocabularyTokenizer tells that each token stands one character further on."""

    def call(old, self, texts, **kwargs):
        found = old(self, texts, **kwargs)
        if "offset_mapping" in found and hasattr(found["offset_mapping"], "add"):
            found["offset_mapping"] = found["offset_mapping"] + 1
        return found

    around(robustness().VocabularyTokenizer, "__call__", call)


@texts("robustness/test_report.py")
def reports_run_what_texts_hold():
    """A report shows markup in texts as markup."""
    around(importlib.import_module("html"), "escape", lambda old, text, *args: text)
    for each in package_modules():
        if "escape" in vars(each):
            put(each, "escape", importlib.import_module("html").escape)


@texts("robustness/test_report.py")
def reports_name_the_next_label():
    """A report names labels by the next name."""

    def write(old, attacked, path, *, names=None, **kwargs):
        return old(attacked, path, names=names and [*names[1:], names[0]], **kwargs)

    around(robustness(), "write_report", write)


@texts("robustness/test_report.py")
def refused_reports_have_no_way_out():
    """`write_report` does not tell what to do about what it refuses."""
    without_way_out(robustness(), "write_report", "robust_accuracy")
