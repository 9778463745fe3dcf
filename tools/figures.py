"""Draws the figures of the rules' pages, from what a GradScheduler really does to one layer.

Run it in the environment of tools/docs: `python tools/figures.py`. They are written to
docs/images/rules, with text in a grey that can be read on white and on black.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import biofx
from biofx.plasticity import (
    Crystallize,
    DalesPrinciple,
    FuzzyLearningRates,
    GradScheduler,
    Rejuvenate,
    Restore,
    Rule,
    UnitTurnover,
    VolumeDependentRates,
)

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images" / "rules"
GREY, BLUE, ORANGE = "#7c8594", "#2f86c5", "#d2691e"
STYLE = {
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": GREY,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "legend.frameon": False,
    "legend.labelcolor": GREY,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "biofx",  # the same file from the same figure
    "text.color": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
}


def stepped(rule: Rule, weight: Tensor, grad: Tensor) -> tuple[GradScheduler, Tensor]:
    """One step of plain SGD, whose rate is as good as 0, on a layer of these weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    bio = biofx.transform(nn.Sequential(layer))
    optimizer = torch.optim.SGD(bio.parameters(), lr=1e-12)
    scheduler = GradScheduler(bio, optimizer, rules=[rule], compile=False)
    parameter = bio.get_parameter("0.weight")
    parameter.grad = grad.clone()
    optimizer.step()
    return scheduler, parameter.detach().clone()


def fuzzy() -> Any:
    names = ("uniform", "normal", "lognormal", "gamma", "beta", "layer_adaptive")
    figure, axes = plt.subplots(2, 3, figsize=(7, 3.4), sharex=True, sharey=True)
    weight = torch.randn(256, 256)
    for name, axis in zip(names, axes.flat, strict=True):
        rule = FuzzyLearningRates(distribution=name, nu=0.3)
        factors = stepped(rule, weight, torch.zeros_like(weight))[0].factors("0.weight")
        axis.hist(
            factors.flatten().tolist(), 60, range=(0.4, 2.1), density=True, color=BLUE, alpha=0.8
        )
        axis.axvline(1, color=GREY, lw=1.2, ls=":")
        axis.set_title(f"{name}, mean {float(factors.mean()):.3f}")
        axis.set_yticks([])
    for axis in axes[1]:
        axis.set_xlabel("factor f")
    return figure


def volume() -> Any:
    figure, axis = plt.subplots(figsize=(6, 2.8))
    weight = torch.linspace(0, 3, 100 * 100).view(100, 100)
    scheduler, _ = stepped(VolumeDependentRates(), weight, torch.zeros_like(weight))
    factors = scheduler.factors("0.weight").flatten()
    size = weight.flatten()
    law = 0.1 * torch.exp(-2 * size / (1 + size))
    some = slice(None, None, 7)
    axis.scatter(size[some], factors[some], s=2, color=BLUE, alpha=0.35, lw=0, rasterized=True)
    axis.plot(size, law, color=ORANGE, label="μ = base·exp(−stability·|w|/(1+|w|))")
    axis.set(xlabel="|w|", ylabel="factor f", ylim=(0, None))
    axis.legend()
    return figure


def crystallize() -> Any:
    figure, axis = plt.subplots(figsize=(5.2, 3.2))
    count, threshold = 160, 0.01
    size = torch.logspace(-4, 0, count).expand(count, count)
    grad = torch.logspace(-7, 0, count)[:, None].expand(count, count)
    rule = Crystallize(threshold=threshold, dampening=0.5)
    scheduler, _ = stepped(rule, size, grad)
    dampened = scheduler.factors("0.weight") < 1
    colours = mpl.colors.ListedColormap(["none", BLUE])
    axis.pcolormesh(size[0], grad[:, 0], dampened, cmap=colours, rasterized=True)
    axis.set(xscale="log", yscale="log", xlabel="|w|", ylabel="|g|")
    axis.text(0.02, 1.2e-6, "settled: |g| < threshold·|w|", color="white", ha="center")
    axis.text(0.01, 0.4, "torn: |g| > mean|w|", color="white", ha="center", va="center")
    axis.text(6e-4, 1e-3, "plastic", ha="center")
    return figure


def rejuvenate() -> Any:
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8))
    weight = (torch.rand(600, 600) * 2 - 1) * torch.rand(600, 600)
    _, after = stepped(Rejuvenate(d=8.0), weight, torch.zeros_like(weight))
    replaced = (after != weight).flatten()
    size = weight.abs().flatten() / weight.abs().max()
    bins = torch.linspace(0, 0.6, 31)
    place = torch.bucketize(size, bins) - 1
    shares = [float(replaced[place == b].float().mean()) for b in range(30)]
    middle = (bins[1:] + bins[:-1]) / 2
    left.bar(middle, shares, width=0.02, color=BLUE, alpha=0.8, label="replaced in one call")
    law = [math.erfc(float(m) * 8 / math.sqrt(2)) for m in middle]
    left.plot(middle, law, color=ORANGE, label="erfc(|w|d/(max|w|√2)), d = 8")
    left.set(xlabel="|w| / max|w|", ylabel="share replaced")
    left.legend()
    for values, name, colour in ((weight, "before", GREY), (after, "after", BLUE)):
        right.hist(
            values.flatten().tolist(), 80, range=(-1, 1), histtype="step", color=colour, label=name
        )
    right.set(xlabel="w", yticks=[])
    right.legend()
    return figure


def dale() -> Any:
    figure, axes = plt.subplots(1, 3, figsize=(7, 2.8))
    panels = {"before": None, "mirrored pairs (default)": "mirrored", '"signs"': "signs"}
    x = torch.randn(4, 24)
    for axis, (name, initialisation) in zip(axes, panels.items(), strict=True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24))
        nn.init.normal_(net[2].weight, std=0.2)
        if initialisation is not None:
            config = biofx.BioConfig(dale_initialisation=initialisation)
            net = biofx.transform(net, config, example_inputs=x)
            optimizer = torch.optim.SGD(net.parameters())
            GradScheduler(net, optimizer, rules=[DalesPrinciple()], compile=False)
        values = net.get_parameter("2.weight").detach().numpy()
        axis.imshow(values, cmap="PuOr", vmin=-0.5, vmax=0.5)
        axis.set(title=name, xlabel="input unit", xticks=[], yticks=[])
    axes[0].set(ylabel="output unit")
    return figure


def restore() -> Any:
    figure, axis = plt.subplots(figsize=(6, 2.8))
    pushed, free = 60, 240
    for strength, colour in ((0.003, GREY), (0.01, BLUE), (0.03, ORANGE)):
        layer = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            layer.weight.fill_(0.2)
        bio = biofx.transform(nn.Sequential(layer))
        optimizer = torch.optim.SGD(bio.parameters(), lr=0.01)
        GradScheduler(bio, optimizer, rules=[Restore(strength=strength)], compile=False)
        weight = bio.get_parameter("0.weight")
        way = []
        for step in range(free):
            weight.grad = torch.full_like(weight, -1.0 if step < pushed else 0.0)
            optimizer.step()
            way.append(float(weight.detach()))
        axis.plot(range(1, free + 1), way, color=colour, label=f"k = {strength:g}")
    axis.axhline(0.2, color=GREY, lw=0.8, ls=":")
    axis.axvline(pushed, color=GREY, lw=0.8, ls=":")
    axis.text(free, 0.21, "w₀", ha="right", va="bottom")
    axis.text(pushed + 3, 0.8, "from here on without a gradient", va="top")
    axis.set(xlabel="step", ylabel="w", ylim=(0.15, 0.95))
    axis.legend(loc="upper right", ncols=3)
    return figure


def turnover() -> Any:
    figure, axis = plt.subplots(figsize=(7, 3.2))
    units, steps = 24, 600
    net = nn.Sequential(nn.Linear(12, units), nn.ReLU(), nn.Linear(units, 4))
    x, y = torch.randn(256, 12), torch.randint(4, (256,))
    bio = biofx.transform(net, example_inputs=x)
    optimizer = torch.optim.Adam(bio.parameters(), lr=1e-2)
    rule = UnitTurnover(rate=1e-3, maturity=100)
    GradScheduler(bio, optimizer, rules=[rule], compile=False)
    utilities, born = [], []
    for step in range(steps):
        rows = torch.randint(len(x), (32,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(bio(x[rows]), y[rows]).backward()
        optimizer.step()
        with torch.no_grad():
            outgoing = bio.get_parameter("2.weight").abs().sum(0)
            utilities.append(bio[1](bio[0](x)).abs().mean(0) * outgoing)
        born += [(step, unit) for unit in (outgoing == 0).nonzero().flatten().tolist()]
    values = torch.stack(utilities, 1)
    colours = mpl.colors.LinearSegmentedColormap.from_list("", [f"{BLUE}00", BLUE])
    axis.pcolormesh(values / values.amax(), cmap=colours, rasterized=True)
    axis.plot(*zip(*born, strict=True), "o", ms=3.5, color=ORANGE, label="replaced", clip_on=False)
    axis.set(xlabel="step", ylabel="unit", yticks=[])
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    return figure


FIGURES = {
    "fuzzy": fuzzy,
    "volume": volume,
    "crystallize": crystallize,
    "rejuvenate": rejuvenate,
    "restore": restore,
    "turnover": turnover,
    "dale": dale,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=FOLDER, metavar="FOLDER")
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        torch.manual_seed(0)
        with mpl.rc_context(STYLE):
            figure = draw()
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)
        print(f"{name}: {(folder / f'{name}.svg').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
