"""Deviations of factors and weights, seen on single layers."""

from typing import Any

import torch
from bio_transformations import BioConverter as Package
from torch import Tensor, nn

import biofx
from deviating.entry import Entry, Measured, raised

SIDE = 200


def three_layers() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(SIDE, SIDE) for _ in range(3)))


def package_factors(model: nn.Module, **settings: object) -> list[Tensor]:
    converted = Package(**settings)(model)
    return [m.bio_mod.fuzzy_learning_rate_parameters for m in converted if hasattr(m, "bio_mod")]


def biofx_factors(model: nn.Module, steps: int = 1, **settings: object) -> list[Tensor]:
    """The factors themselves: what gradients of 1 become, step by step the last ones."""
    bio = biofx.transform(model, biofx.BioConfig(**settings))
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.0)
    biofx.GradScheduler(bio, optimizer, apply="gradient")
    weights = [bio.get_parameter(name) for name in biofx.info(bio).synapses]
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
    return [weight.grad for weight in weights]


def gamma() -> Measured:
    def described(factors: list[Tensor]) -> str:
        f = factors[0]
        stuck = ((f == 0.5) | (f == 2.0)).float().mean()
        return f"mean {f.mean():.2f}, standard deviation {f.std():.2f}, {stuck:.1%} at the clamp"

    return Measured(
        described(package_factors(three_layers(), fuzzy_lr_distribution="gamma")),
        described(biofx_factors(three_layers(), fuzzy_lr_distribution="gamma")),
    )


def layer_adaptive() -> Measured:
    def described(factors: list[Tensor]) -> str:
        spreads = ", ".join(f"{(f - 1).abs().max():.3f}" for f in factors)
        return f"largest abs(f − 1) of the first, second, third layer: {spreads}"

    return Measured(
        described(package_factors(three_layers(), fuzzy_lr_distribution="layer_adaptive")),
        described(biofx_factors(three_layers(), fuzzy_lr_distribution="layer_adaptive")),
    )


def weight_adaptive() -> Measured:
    model = Package(fuzzy_lr_distribution="weight_adaptive")(three_layers())
    dynamic = Package(fuzzy_lr_distribution="weight_adaptive", fuzzy_lr_dynamic=True)(
        three_layers()
    )
    changed = {}
    for name, net in (("static", model), ("dynamic", dynamic)):
        own = net[0].bio_mod
        net.update_fuzzy_learning_rates()
        before = own.fuzzy_learning_rate_parameters.clone()
        for _ in range(100):
            net.update_fuzzy_learning_rates()
        after = own.fuzzy_learning_rate_parameters
        changed[name] = (float((before != after).float().mean()), float((after - 1).abs().max()))
    fuzzy = {"fuzzy_lr_distribution": "weight_adaptive"}
    torch.manual_seed(1)
    net = three_layers()
    first, later = biofx_factors(net, **fuzzy)[0], biofx_factors(net, steps=102, **fuzzy)[0]
    moving = biofx_factors(net, steps=102, fuzzy_lr_dynamic=True, **fuzzy)[0]

    def described(static: float, spread: float, moving: float, dynamic: float) -> str:
        return (
            f"static: {static:.0%} of the factors change in 100 updates after the first, largest "
            f"abs(f − 1) {spread:.2f}; with `fuzzy_lr_dynamic`: {moving:.0%}, largest abs(f − 1) "
            f"{dynamic:.2f}"
        )

    def change(later: Tensor) -> tuple[float, float]:
        return float((first != later).float().mean()), float((later - 1).abs().max())

    return Measured(
        described(*changed["static"], *changed["dynamic"]),
        described(*change(later), *change(moving)),
    )


def activity() -> Measured:
    def package() -> None:
        model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
        net = Package(fuzzy_lr_distribution="activity", fuzzy_lr_dynamic=True)(model)
        x = torch.randn(8, 20)
        net(x)
        net.update_fuzzy_learning_rates(x)

    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
    config = biofx.BioConfig(fuzzy_lr_distribution="activity", fuzzy_lr_dynamic=True)
    bio = biofx.transform(model, config)
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.1)
    scheduler = biofx.GradScheduler(bio, optimizer)
    bio(torch.randn(8, 20)).sum().backward()
    optimizer.step()
    spread = scheduler.metrics()["0.weight"]["factor_std"]
    return Measured(
        f"`model(x)`, then `model.update_fuzzy_learning_rates(x)`: {raised(package)}",
        f"layers count while the model runs; standard deviation of f after a step {spread:.3f}",
    )


def rejuvenation() -> Measured:
    def described(before: Tensor, after: Tensor) -> str:
        old, new = before.flatten(), after.flatten()
        large = old.abs() > 1
        moved = old != new
        kept = float((new[large] == old[large]).float().mean())
        fresh = new[moved & ~large]
        return (
            f"{kept:.1%} of the weights beyond ±1 keep their value; of the replaced ones "
            f"{(fresh > 0).float().mean():.1%} are positive, median size {fresh.abs().median():.1e}"
        )

    torch.manual_seed(0)
    start = torch.randn(SIDE, SIDE)
    layer = nn.Sequential(nn.Linear(SIDE, SIDE))
    layer[0].weight.data.copy_(start)
    net = Package()(layer)
    net.rejuvenate_weights()
    ours = nn.Sequential(nn.Linear(SIDE, SIDE))
    ours[0].weight.data.copy_(start)
    bio = biofx.BioConverter()(ours)
    bio.rejuvenate_weights()
    return Measured(described(start, net[0].weight.data), described(start, ours[0].weight.data))


def dale() -> Measured:
    def described(weight: Tensor) -> str:
        rows = ((weight > 0).all(1) | (weight < 0).all(1)).float().mean()
        columns = ((weight > 0).all(0) | (weight < 0).all(0)).float().mean()
        return f"one sign in {rows:.0%} of the rows and in {columns:.0%} of the columns"

    package = Package(apply_dales_principle=True)(three_layers())
    ours = biofx.BioConverter(apply_dales_principle=True)(three_layers())
    rows = biofx.BioConverter(apply_dales_principle=True, dale_axis="post")(three_layers())
    return Measured(
        described(package[0].weight.data),
        described(ours[0].weight.data)
        + f'; with `dale_axis="post"`: {described(rows[0].weight.data)}',
    )


def dale_output() -> Measured:
    def share(model: Any, *, package: bool) -> str:
        """Of weights whose sign is flipped: how many are set to 0, by layer."""
        for layer in (model[0], model[2]):
            with torch.no_grad():
                layer.weight.mul_(-1)
            if package:
                layer.bio_mod.enforce_dales_principle()
        if not package:
            model.enforce_dales_principle()
        first, output = (float((model[place].weight == 0).float().mean()) for place in (0, 2))
        return f"first layer {first:.0%}, output layer {output:.0%}"

    return Measured(
        share(Package(apply_dales_principle=True)(three_layers()), package=True),
        share(biofx.BioConverter(apply_dales_principle=True)(three_layers()), package=False),
    )


def without_gradient() -> Measured:
    def found(converter: Any) -> str:
        model = converter(three_layers())
        for name, parameter in model.named_parameters():
            if not name.startswith("2."):
                parameter.grad = torch.ones_like(parameter)
        methods = ("fuzzy_learning_rates", "crystallize", "volume_dependent_lr")
        texts = [f"`{method}()`: {raised(getattr(model, method))}" for method in methods]
        spread = float(model[0].weight.grad.std())
        return f"{'; '.join(texts)}; the first layer's factors have spread {spread:.2f} afterwards"

    return Measured(found(Package()), found(biofx.BioConverter()))


def l1() -> Measured:
    def found(converter: Any) -> str:
        layer = converter(three_layers())[0]
        total = float(layer.bio_mod.l1_reg())
        weights = float(sum(p.detach().abs().sum() for p in (layer.weight, layer.bias)))
        return f"{total:.1f}, where Σ|w| over the layer's weights and biases is {weights:.1f}"

    return Measured(found(Package()), found(biofx.BioConverter()))


ENTRIES = [
    Entry("gamma", "GAMMA factors", "The package adds 1 to a variable whose mean is 1 already, and "
          "its variance is ν, not ν². In biofx the mean is 1 and the standard deviation ν = 0.16.",
          gamma),
    Entry("layer-adaptive", "LAYER_ADAPTIVE factors", "The spread is to fall from ν in the first "
          "layer to ν/2 in the last. The package draws before layers have their index, and so "
          "draws plain uniform factors. ν = 0.16.", layer_adaptive),
    Entry("weight-adaptive", "WEIGHT_ADAPTIVE factors", "To be drawn at the first update and, with "
          "`fuzzy_lr_dynamic`, again every `fuzzy_lr_update_freq` = 100 updates. With it, the "
          "package never draws them: all stay 1. ν = 0.16.", weight_adaptive),
    Entry("activity", "ACTIVITY factors", "The package gives the network's input to each layer. "
          "Its forward pass, too, draws the factors anew, in a tenth of the calls. In biofx they "
          "are drawn every `fuzzy_lr_update_freq` updates; where forward passes were counted and "
          "no update called, `fuzzy_learning_rates()` makes one.", activity),
    Entry("rejuvenate", "What rejuvenation leaves", "One call on standard normal weights. The "
          "package clamps every weight to ±1 and draws new weights from a law that is positive, "
          "with the mean of the signed weights, which is near 0. biofx draws them from "
          "U(−max abs w, max abs w), as the paper does.", rejuvenation),
    Entry("dale", "Dale's principle", "All *outgoing* weights of a unit have one sign: columns of "
          "a linear layer's weight. The package signs rows. "
          "`GradScheduler` also begins otherwise: since 0.2.0 units come in mirrored pairs "
          'where that fits (`dale_initialisation="mirrored"`, the default); '
          '`"signs"` gives |w|·sign, as before. '
          "The [rules](rules.md) say why.", dale),
    Entry("dale-output", "Dale's principle on the output layer", "All weights are flipped to the "
          "wrong sign, then the principle is enforced: they are to become 0. The package gives the "
          "output layer signs, and never enforces them.", dale_output),
    Entry("no-gradient", "Layers without a gradient", "A network whose output layer got no "
          "gradient, as where a part of it is frozen or was not used. The package stops there, "
          "when other layers have been scaled already. biofx leaves such layers alone, and raises "
          "only if no layer has a gradient.", without_gradient),
    Entry("l1", "`l1_reg`", "The package sums the factors, which are its own parameters, and gives "
          "a number without a gradient. biofx sums the layer's weights and biases, so that the sum "
          "can be part of a loss.", l1),
]  # fmt: skip
