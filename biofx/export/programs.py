"""What is exported: plain copies of a transformed model, folded and as it is."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from biofx.capture import Arguments
from biofx.copying import separate
from biofx.export.bake import bake
from biofx.export.folding import FoldReport, fold
from biofx.modules.plain import plain


@dataclass(frozen=True)
class Program:
    """A model that is to be written.

    Attributes:
        model: of the user's and torch's own classes, in evaluation mode, with tensors of its own.
        report: what was folded; None if that was not asked for.
        branches: whether the file must hold each way that the code can take, or one alone; None
            if there is but one.
    """

    model: nn.Module
    report: FoldReport | None = None
    branches: bool | None = None

    @property
    def folded(self) -> bool:
        """Whether results may differ from the model's by rounding."""
        return self.report is not None and self.report.changed


def programs(bio: nn.Module, arguments: Arguments | None, folding: bool) -> Iterator[Program]:
    """The folded copy if there is something to fold, then one that is not.

    A file that holds all ways of the code comes before one that is folded for one of them.

    Args:
        bio: a transformed model; it is not changed.
        arguments: example inputs.
        folding: whether to fold.
    """
    model = _copied(bio)
    if not folding:
        yield Program(model)
        return
    report = fold(bio, model, arguments)
    one_way = report.changed and bool(report.branch)
    if one_way:
        why = f"the code may take another way for other data ({report.branch})"
        yield Program(_copied(bio), report.refused(why), branches=True)
    yield Program(model, report, branches=False if one_way else None)
    if report.changed:
        yield Program(_copied(bio), report.refused("the folded model could not be expressed"))


def _copied(bio: nn.Module) -> nn.Module:
    model = separate(plain(bio)).eval()
    bake(model)
    return model
