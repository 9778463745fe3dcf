"""A scheduler in one line, and as a small table for notebooks."""

from collections import Counter
from collections.abc import Sequence
from html import escape

from biofx.plasticity.scheduler.engine import Engine
from biofx.synapses import original_class, unwrap


def _said(text: str) -> str:
    """Text on one line; names come from the user's code and may hold anything."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _serving(engine: Engine) -> dict[str, int]:
    """{rule that acts: number of parameters}, in the order of the rules."""
    counts = Counter(rule.name for b in engine.bindings.values() for rule, _ in b.pairs)
    return {rule.name: counts[rule.name] for rule in engine.rules if counts[rule.name]}


def _model(engine: Engine) -> str:
    return _said(original_class(unwrap(engine.model)).__name__)


def _steps(steps: Sequence[int], *, detached: bool) -> str:
    return f"steps taken: {', '.join(f'{count:,}' for count in steps)}" + ", detached" * detached


def line(engine: Engine, steps: Sequence[int], *, detached: bool) -> str:
    """``<GradScheduler of Net: fuzzy on 4 parameters; steps taken: 120>``."""
    rules = ", ".join(
        f"{_said(name)} on {count:,} parameter{'s' if count != 1 else ''}"
        for name, count in _serving(engine).items()
    )
    told = _steps(steps, detached=detached)
    return f"<GradScheduler of {_model(engine)}: {rules or 'no rule acts'}; {told}>"


def table(engine: Engine, steps: Sequence[int], *, detached: bool) -> str:
    """The same as a fragment of HTML: a row for each rule that acts."""
    rows = "".join(
        f"<tr><td style='text-align:left'>{escape(_said(name))}</td><td>{count:,}</td></tr>"
        for name, count in _serving(engine).items()
    )
    told = _steps(steps, detached=detached)
    return (
        f"<table><caption style='text-align:left; white-space:nowrap'><b>GradScheduler</b> of "
        f"{escape(_model(engine))}, {told}</caption><thead><tr>"
        "<th style='text-align:left'>rule</th><th>parameters</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )
