"""How the results of tools/optimizers are shown: a table, and the page docs/optimizers.md."""

from collections.abc import Iterable
from importlib.metadata import version

import torch
from benchmarks.report import markdown_table

from optimizing.measure import FACTORS, REST, STEPS, Result

PAGE = """\
# Optimizers

A plasticity factor f multiplies the move that the optimizer has made: w ← w_before + f·(w −
w_before). That is a learning rate of each synapse where the next move depends on gradients alone.
Some optimizers keep *places* instead (slow weights, a mean, the weights at the start), and pull the
weights towards them; f would be undone, or never carried out. No name tells the two apart, so
biofx tries an optimizer that is not one of torch's on a small parameter of its own, when the
scheduler is made (some milliseconds):

- **gradients alone**: f acts as it is;
- **schedule-free**: f multiplies the move of z, exactly; the weights and their mean follow;
- **master weights** (wider copies that weights are rounded from): f multiplies the masters' move;
- **wrappers** (Lookahead, SAM, Opacus, Accelerate, `PostLocalSGDOptimizer`): f acts in what is
  inside, and takes the step;
- **everything else that pulls** is refused, with the remedy: the optimizer that it builds on, or
  `apply="gradient"`. Rules that have no factor work there all the same.

An optimizer that cannot be tried (it needs more than parameters and settings) is looked at after
its first step, and refused if something in its state lies where the weights are. One that pulls
for the first time after more than 240 steps is taken for one that does not.

A synapse that `Rejuvenate` replaces gets the state that the optimizer makes at the start: 0, its
own start value (Rprop's step sizes, Adagrad's accumulator), or, for places, the new weight. States
of 8 bits (torchao, bitsandbytes, float8) are reset by their codes, and the rest stays to the bit;
4-bit states without a code for 0 are refused. Statistics per row or column stay.

Weights in half precision: what a factor leaves of a move is rounded up or down by chance, from
biofx's own counters, so that it acts in the mean; the same in every process and after resuming.

Written by `tools/optimizers --markdown docs/optimizers.md`, which installs the extra `optimizers`
at the versions of `tools/constraints.txt`; torch {torch}.

## Over {steps} steps

Gradients do not depend on the weights, and nothing decays, so the way of a synapse after {steps}
steps should be f times the plain one.

- **f = …**: how far synapses with this factor get, as a multiple of those whose factor is 1 (the
  slope on the plain way, over all of them);
- **plain**: how far those with factor 1 get, as a multiple of a run without biofx. It is not 1
  where the optimizer looks at all weights at once: Adafactor and LAMB scale their steps by the
  weights' norm, Prodigy and D-Adaptation learn their learning rate from the way of all weights;
- **new**: how far new synapses go in {rest} steps with gradients of 0, in multiples of the mean
  move of a step. It is not 0 where the optimizer mixes the synapses of a matrix (Muon, Shampoo,
  SOAP), for new ones are moved by the momentum of the others; nor under 8-bit optimizers of
  bitsandbytes on a CPU, which store 0 as a small number: its Lion moves weights that never had a
  gradient.

{summary}

{tables}"""


def page(results: list[Result]) -> str:
    libraries = dict.fromkeys(result.library for result in results)
    tables = []
    for library in libraries:
        own = [result for result in results if result.library == library]
        shown = "" if library == "torch" else f" {version(library)}"
        tables += [f"### {library}{shown}\n", table(own)]
        left = [result for result in own if result.skipped or result.error]
        tables += [f"- {result.name}: {result.skipped or result.error}" for result in left]
        if left:
            tables.append("")
    return PAGE.format(
        torch=torch.__version__,
        steps=STEPS,
        rest=REST,
        summary=summary(results),
        tables="\n".join(tables).rstrip() + "\n",
    )


def summary(results: Iterable[Result]) -> str:
    shown = [result for result in results if not result.skipped]
    exact = sum(result.exact for result in shown)
    refused = sum(bool(result.refused) for result in shown)
    off = [result.name for result in shown if result.ways and not result.exact]
    text = f"{len(shown)} optimizers: factors act exactly in {exact}, and are refused in {refused}"
    return f"{text}; they are off in {', '.join(off)}." if off else f"{text}."


def table(results: Iterable[Result]) -> str:
    factors = [f"f = {f:g}" for f in FACTORS if f != 1]
    columns = ["optimizer", "what moves weights", *factors, "plain", "new"]
    return markdown_table(columns, [row(r) for r in results if not (r.skipped or r.error)])


def row(result: Result) -> list[str]:
    acting = [way for way, f in zip(result.ways, FACTORS, strict=False) if f != 1]
    ways = [f"{way:.3f}".replace("-0.000", "0.000") for way in (*acting, result.whole)]
    new = "refused" if result.unkind else f"{result.drift or 0:.2g}"
    return [result.name, result.kind, *(ways if acting else ["refused", "", "", ""]), new]
