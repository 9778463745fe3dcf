"""The pages `docs/benchmarks.md` and `docs/scaling.md`, written from measurements."""

from typing import Any

from benchmarks.report import Report, markdown

BENCHMARKS = """\
# Benchmarks

Written by `tools/bench --markdown docs/benchmarks.md --scaling docs/scaling.md`; `tools/bench
--help` says how to run a part of it. It needs the extra `bench`, which has the package
`bio_transformations` to compare with.

Measured with {machine}.

How: every time is the median of calls that take turns within one process, so that other work on the
machine slows all of them alike. Look at the ratios; absolute times hold for a machine and its load.
Weights and gradients are equal before each call. All in float32. What is called eager runs with
`compile=False`, what is called compiled with `compile=True`. Small networks and goal 6 take one
thread; their steps are taken in a row, as in training, for a plain step that finds its caches full
of something else takes up to twice as long, and would make the rules look cheap.

{runs}

What small networks pay: a plain step of 20-5-1 is little but calls of PyTorch from Python, and the
rules add calls of their own: hooks, a look at whether weights and gradients are what they were, a
kernel. In 784-100-100-10 the arithmetic counts: as people set them, the rules are some 200
operations on each of 89,400 weights, in one pass if compiled, where the step itself multiplies
matrices of 16 rows. Uncompiled, each of these operations is a pass over memory.

An empty cache is one without anything compiled ahead. Headers that PyTorch compiles ahead by
default took 10 s more before the first kernel, on a machine that had none, and 300 MB of its disk;
biofx goes without.

"""

SCALING = """\
# Scaling

What plasticity costs per parameter, and what follows for a model of 7 billion. The tables are
written by `tools/bench --rows scaling --scaling docs/scaling.md`, with {machine}.

{tables}
## On paper: {billions:.1f} billion parameters on {ranks} ranks

A decoder with {layers} layers of width {width}, feed-forward width {hidden}, and a vocabulary of
{vocabulary:,}: {count:,} weights in {tensors} tensors, under `fully_shard` with float32
shards. What follows is computed from shapes and from the code, not measured.

| per rank | |
|---|---|
| weights | {local:,.0f} million, {weights:.0f} MB; AdamW's two moments {moments:.0f} MB |
| state of fuzzy (static), volume, rejuvenate, Dale | 0 bytes |
| state of crystallize, 4 bytes per weight | {four:.0f} MB |
| TEMPORAL, WEIGHT_ADAPTIVE or GAMMA factors, 4 bytes per weight | {four:.0f} MB |
| `apply="update"` under AdamW: the weights before the step; on a CPU, kept | {four:.0f} MB |
| plain SGD | no copy |
| `apply="gradient"`: crystallize's factors; on a CPU, kept | {four:.0f} MB |

Memory traffic of the rules per rank and step, in gradient mode: fuzzy reads and writes the
gradients ({rw:.2f} GB). One pass for all three of fuzzy, volume and crystallize reads weights,
gradients and crystallize's factors and writes gradients and factors ({all:.2f} GB); mean |w|
reads the weights once more ({four:.0f} MB).

| sent per rank and step | all-reduces | payload |
|---|---|---|
| random numbers: a function of seed, step, name, rule and element index | 0 | 0 |
| fuzzy, all static distributions; Dale's principle | 0 | 0 |
| mean abs w, for crystallize and volume together (sums of float64) | 1 | {sums:,} bytes |
| max abs w, for rejuvenate, at the steps where it acts | 1 | {sums:,} bytes |
| log-moments, for `rejuvenate_law="lognormal"`: count and two sums more | 1 | {logs:,} bytes |
| a cap on rejuvenation: the expected number of lost synapses (float64) | 1 | {sums:,} bytes |
| ACTIVITY: float32 counts per output unit, all layers in one tensor | 1 | {activity:.1f} MB |

For comparison, `fully_shard` itself sends every step two all-gathers and one reduce-scatter of
the weights: in bfloat16 about {fsdp:.0f} GB per rank. The plasticity rules' statistics are
{share:.0e} of it. ACTIVITY counts are taken on the activations that are there anyway.

`statistics.py` checks once per step that all statistics are finite, which waits for the device.
"""

LAYERS, WIDTH, HIDDEN, VOCABULARY, RANKS = 32, 4096, 11008, 32_000, 64


def benchmarks(report: Report) -> str:
    number = report.machine.get("runs", 1)
    runs = (
        "Each row was run once."
        if number == 1
        else f"Each row that takes times was run {number} times: a goal shows the median and, in\n"
        "brackets, the range, and is met if it was met each time; the tables are those of the\n"
        "last run. Bytes, and the 200,000 steps, were taken once."
    )
    return BENCHMARKS.format(machine=described(report.machine), runs=runs) + markdown(report)


def described(machine: dict[str, Any]) -> str:
    return (
        f"{machine['processors']} processors ({machine['processor']}), {machine['threads']} "
        f"threads, {machine['system']}, Python {machine['python']}, torch {machine['torch']}; load "
        f"average at the start {machine['load']}"
    )


def scaling(report: Report) -> str:
    block = 4 * WIDTH * WIDTH + 3 * WIDTH * HIDDEN
    count = LAYERS * block + 2 * VOCABULARY * WIDTH
    tensors = 7 * LAYERS + 2
    local = count / RANKS
    sums = 8 * tensors
    units = LAYERS * (5 * WIDTH + 2 * HIDDEN) + WIDTH + VOCABULARY
    sent = 3 * 2 * count * (RANKS - 1) / RANKS
    return SCALING.format(
        machine=described(report.machine),
        tables=markdown(report),
        billions=count / 1e9, ranks=RANKS, layers=LAYERS, width=WIDTH, hidden=HIDDEN,
        vocabulary=VOCABULARY, count=count, tensors=tensors,
        local=local / 1e6, weights=4 * local / 1e6, moments=8 * local / 1e6,
        four=4 * local / 1e6, rw=8 * local / 1e9, all=20 * local / 1e9,
        sums=sums, logs=3 * sums, activity=4 * units / 1e6,
        fsdp=sent / 1e9, share=3 * sums / sent,
    )  # fmt: skip
