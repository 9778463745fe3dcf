"""Does an exported model compute what the transformed one computes?"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from biofx.capture import Arguments
from biofx.capture.isolation import generators_kept
from biofx.copying import separate
from biofx.copying.nested import leaves
from biofx.errors import ExportError
from biofx.export.attempt import Attempt, Impossible, Refused, doubled, one_line

# Largest difference relative to the largest value of a tensor. Compilers sum in another order;
# a wrong export makes far more.
_ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# Folding adds up weights before they meet data, and a deep model amplifies what that rounds.
_FOLDED = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


@dataclass(frozen=True)
class Comparison:
    """How far the results lie apart: `difference` is None if values cannot be compared."""

    difference: float | None
    reason: str = ""


class Expected:
    """What a model gives for example inputs, in evaluation mode.

    Args:
        model: the transformed model; it is not changed.
        arguments: the example inputs.
        calls: how often it is called with them; the results are those of the last call.

    Raises:
        ExportError: the model cannot take them, or gives no tensors, of which alone files consist.
    """

    def __init__(self, model: nn.Module, arguments: Arguments, *, calls: int = 1) -> None:
        self.model, self.arguments, self.calls = model, arguments, calls
        twin = separate(model).eval()
        try:
            self.results, self.random = _run(
                lambda given: twin(*given.args, **given.kwargs), arguments, calls
            )
        except Exception as error:
            raise ExportError(
                f"the model does not run on the example inputs: {one_line(error)}"
            ) from error
        if not self.results:
            raise ExportError(
                "the model gives no tensors for the example inputs, so that a file would hold "
                "nothing; return tensors, or a tuple, list or dict of them (a generator runs only "
                "where it is iterated)"
            )

    def compare(self, attempt: Attempt, data: Any, *, folded: bool) -> Comparison:
        """Load a file's content, run it and compare.

        Raises:
            Impossible: it does not run, or computes something else.
        """
        loose = folded or attempt.loose
        loaded = cache(partial(attempt.load, data))  # within the check, for it may fail
        return self.check(lambda given: loaded()(given), folded=loose, same_random=attempt.exact)

    def elsewhere(self, attempt: Attempt, data: Any, *, folded: bool) -> Iterator[str]:
        """What is to be said of a file that gives something else at another call."""
        try:
            Expected(self.model, self.arguments, calls=2).compare(attempt, data, folded=folded)
        except ExportError:
            pass  # the model takes no second call
        except Impossible:
            yield (
                "only for the first call: the model keeps something from one call to the next, "
                "and gives something else then"
            )
        given = result_tensors((self.arguments.args, dict(self.arguments.kwargs)))
        for dim in range(max((tensor.dim() for tensor in given), default=0)):
            try:
                larger = Expected(self.model, doubled(self.arguments, dim))
                larger.compare(attempt, data, folded=folded)
            except (ExportError, Refused):
                continue  # the model takes no such inputs, or the file does not
            except Impossible:
                yield (
                    f"only for inputs of the example's length along dimension {dim}: for others "
                    "it gives something else than the model"
                )

    def check(
        self, call: Callable[[Arguments], Any], *, folded: bool, same_random: bool = True
    ) -> Comparison:
        """Call something on the example inputs and compare.

        Args:
            call: what is to give the same results.
            folded: allow for sums that were made in another order.
            same_random: the same seed gives it the same random numbers.

        Raises:
            Impossible: it does not run, or computes something else.
        """
        try:
            theirs, _ = _run(call, self.arguments, self.calls)
        except NotCompared as error:
            return Comparison(None, str(error))
        except Exception as error:
            last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise Refused(f"what it makes does not run on the example inputs: {last[0]}") from error
        if len(self.results) != len(theirs):
            raise Impossible(f"it gives {len(theirs)} tensors, not {len(self.results)}")
        worst = 0.0
        for place, (mine, other) in enumerate(zip(self.results, theirs, strict=True)):
            if mine.shape != other.shape or mine.dtype != other.dtype:
                raise Impossible(f"its result {place} is {_kind(other)}, not {_kind(mine)}")
            gap = _gap(mine, other)
            if gap > (_FOLDED if folded else _ROUNDING).get(mine.dtype, 0.0):
                if self.random and not same_random:
                    return Comparison(None, "it draws random numbers, and draws them otherwise")
                raise Impossible(f"its result {place} differs from the model's by up to {gap:.3g}")
            worst = max(worst, gap)
        return Comparison(worst)


class _Failures(TorchFunctionMode):
    """Notes whether an operation of torch's raised an error."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except Exception:
            self.seen = True
            raise


def catches_failures(model: nn.Module, arguments: Arguments) -> bool:
    """Whether a model goes on after an operation has failed, as no exported file does."""
    twin, given = separate(model), arguments.copies()
    with generators_kept(), warnings.catch_warnings(), torch.no_grad(), _Failures() as failures:
        warnings.simplefilter("ignore")
        twin(*given.args, **given.kwargs)
    return bool(failures.seen)


class NotCompared(Exception):
    """What would run the file is not installed; the message says what."""


def _run(call: Any, arguments: Arguments, calls: int) -> tuple[list[Tensor], bool]:
    """The tensors that the last of several calls gives, and whether it drew random numbers."""
    with generators_kept(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they belong to the user's own runs
        for _ in range(calls):
            torch.manual_seed(0)
            before = torch.get_rng_state()
            result = call(arguments.copies())
        return list(result_tensors(result)), not torch.equal(before, torch.get_rng_state())


def result_tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of a result in order, dense."""
    for _, leaf in leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf.detach() if leaf.layout is torch.strided else leaf.detach().to_dense()


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _gap(mine: Tensor, other: Tensor) -> float:
    """Largest difference, relative to the largest finite value; infinite where NaNs differ."""
    if not mine.numel() or torch.equal(mine, other):
        return 0.0
    if not (mine.is_floating_point() or mine.is_complex()):
        return float("inf")
    wide = torch.complex128 if mine.is_complex() else torch.float64
    mine, other = mine.to(wide), other.to(wide)
    gaps = (mine - other).abs()
    gaps[(mine == other) | (mine.isnan() & other.isnan())] = 0
    largest = mine.abs()[mine.isfinite()].amax() if mine.isfinite().any() else torch.ones(())
    gap = float(gaps.nan_to_num(nan=float("inf"), posinf=float("inf")).amax())
    return gap / max(float(largest), 1e-30)
