"""What is exported: plain copies of a transformed model, folded and as it is."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from biofx.capture import Arguments
from biofx.copying import clone, own_tensors
from biofx.export.bake import bake
from biofx.export.folding import FoldReport, fold
from biofx.modules.plain import plain


@dataclass(frozen=True)
class Program:
    """A model that is to be written.

    Attributes:
        model: of the user's and torch's own classes, in evaluation mode, with tensors of its own.
        report: what was folded; None if that was not asked for.
    """

    model: nn.Module
    report: FoldReport | None = None

    @property
    def folded(self) -> bool:
        """Whether results may differ from the model's by rounding."""
        return self.report is not None and self.report.changed


def programs(bio: nn.Module, arguments: Arguments | None, folding: bool) -> Iterator[Program]:
    """The folded copy if there is something to fold, then one that is not.

    Args:
        bio: a transformed model; it is not changed.
        arguments: example inputs.
        folding: whether to fold.
    """
    model = clone(plain(bio), tensor=own_tensors()).eval()
    bake(model)
    if not folding:
        yield Program(model)
        return
    report = fold(bio, model, arguments)
    yield Program(model, report)
    if report.changed:
        again = clone(plain(bio), tensor=own_tensors()).eval()
        bake(again)
        yield Program(again, report.refused("the folded model could not be expressed"))
