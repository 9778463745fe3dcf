"""Deviations in what is accepted, refused and said."""

import warnings
from typing import Any

import torch
from bio_transformations import BioConverter as Package
from bio_transformations import BioModule as PackageModule
from bio_transformations.bio_config import BioConfig as PackageConfig
from torch import nn

import biofx
from deviating.entry import Entry, Measured, raised

EDGES = {
    "fuzzy_learning_rate_factor_nu": 0,
    "crystal_thresh": 0,
    "stability_factor": 0,
    "lr_variability": 0,
    "dampening_factor": 1,
    "base_lr": 1,
}
SIDE = 100


def two_layers() -> Any:
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))


def in_place() -> Measured:
    def found(make: Any) -> str:
        model = two_layers()
        made = make()(model)
        shared = "shares" if made[0].weight is model[0].weight else "does not share"
        had = "has" if hasattr(model, "rejuvenate_weights") else "does not have"
        same = "is the model given" if made is model else "is a new module"
        return f"the result {same} and {shared} its parameters; the model given {had} the methods"

    return Measured(found(Package), found(biofx.BioConverter))


def no_layers() -> Measured:
    return Measured(*(raised(lambda m=m: m()(nn.ReLU())) for m in (Package, biofx.BioConverter)))


def unknown() -> Measured:
    def call(make: Any) -> str:
        return raised(lambda: make(fuzzy_lr_distribution="unifrom")(two_layers()))

    return Measured(
        f"uniform factors, with a line in the log; {call(Package)}", call(biofx.BioConverter)
    )


def edges() -> Measured:
    def refused(make: Any) -> str:
        fields = [
            f"`{field}={value}`"
            for field, value in EDGES.items()
            if raised(lambda f=field, v=value: make(**{f: v})(two_layers())) != "nothing is raised"
        ]
        return f"refuses {', '.join(fields) or 'none of them'}"

    return Measured(refused(Package), refused(biofx.BioConverter))


def fields() -> Measured:
    def found(config: Any) -> str:
        names = PackageConfig._fields
        unpacked = raised(lambda: dict(zip(names, config, strict=True)))
        return f"{len(config)} fields; unpacking into {len(names)} names: {unpacked}"

    return Measured(found(PackageConfig()), found(biofx.BioConfig()))


def strange_weights() -> Measured:
    def found(make: Any) -> str:
        layer = nn.Linear(SIDE, SIDE)
        mechanisms = make(lambda: layer)
        layer.weight.data.zero_()
        zeros = raised(mechanisms.rejuvenate_weights)
        size = float(layer.weight.detach().abs().median())
        layer.weight.data.normal_()[0, 0] = torch.nan
        broken = raised(mechanisms.rejuvenate_weights)
        kept = int(layer.weight.isnan().sum())
        return (
            f"all zero: {zeros}, median size afterwards {size:.1e}; one NaN: {broken}, {kept} NaN "
            "afterwards"
        )

    return Measured(found(PackageModule), found(biofx.BioModule))


def older_law() -> Measured:
    def found(make: Any) -> str:
        layer = nn.Linear(SIDE, SIDE)
        layer.weight.data.normal_()
        before = layer.weight.detach().clone()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make(lambda: layer).rejuvenate_weights_old()
        changed = float((layer.weight != before).float().mean())
        broken = float(layer.weight.isnan().float().mean())
        return f"{changed:.1%} of the weights change, {broken:.1%} become NaN"

    return Measured(found(PackageModule), found(biofx.BioModule))


def frozen() -> Measured:
    def found(make: Any) -> str:
        model = two_layers()
        model[0].requires_grad_(False)
        before = model[0].weight.detach().clone()
        bio = make(rejuvenation_parameter_dre=1.0)(model)
        bio(torch.randn(5, 12)).sum().backward()
        stopped = raised(bio.crystallize)
        bio.rejuvenate_weights()
        share = float((bio[0].weight != before).float().mean())
        return (
            f"`crystallize()`: {stopped}; `rejuvenate_weights()` changes {share:.0%} of its weights"
        )

    return Measured(found(Package), found(biofx.BioConverter))


def only_layer() -> Measured:
    def found(make: Any) -> str:
        model = nn.Sequential(nn.Linear(6, 4))
        x = torch.randn(3, 6)
        before = model(x)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            after = make(weight_splitting_Gamma=2)(model)(x)
        split = "not split" if torch.equal(before, after) else "split"
        return f"{split}; {'a warning says so' if caught else 'nothing is said'}"

    return Measured(found(Package), found(biofx.BioConverter))


def signs() -> Measured:
    def found(module: Any, config: Any) -> str:
        layer = nn.Linear(5, 3)
        mechanisms = module(lambda: layer, config(apply_dales_principle=True))

        def flip() -> None:
            mechanisms.sign = nn.Parameter(-mechanisms.sign, requires_grad=False)

        return f"`bio_mod.sign = …`: {raised(flip)}"

    return Measured(found(PackageModule, PackageConfig), found(biofx.BioModule, biofx.BioConfig))


def untyped() -> Measured:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4, 6))

    def found(module: Any, config: Any) -> str:
        layer = Own()

        def made(**settings: Any) -> str:
            return raised(lambda: module(lambda: layer, config(**settings)))

        return f"uniform: {made()}; ACTIVITY: {made(fuzzy_lr_distribution='activity')}"

    return Measured(found(PackageModule, PackageConfig), found(biofx.BioModule, biofx.BioConfig))


ENTRIES = [
    Entry("in-place", "Which object is converted", "The package changes the model it is given. "
          "biofx leaves it as it is, so that a failed conversion leaves nothing half done; keep "
          "the result.", in_place),
    Entry("no-layers", "A model without weight layers", "Nothing would ever act on it. The model "
          "is `nn.ReLU()`.", no_layers),
    Entry("unknown", "An unknown distribution", "A typing error must not train another model than "
          "the one meant. The distribution is given as `unifrom`.", unknown),
    Entry("edges", "Values at the edge of their range", "At its edge a value turns a mechanism "
          "off, as a control run needs it: with ν = 0 all factors are 1. Values beyond are refused "
          "by both; by biofx as soon as the configuration is made.", edges),
    Entry("fields", "The configuration as a tuple", "The first 18 fields have the package's "
          "places; biofx has more settings, which follow.", fields),
    Entry("strange-weights", "Rejuvenating zeros and NaN", "New weights are as large as the old, "
          "so zeros give zeros. A NaN shows that training has failed, which the package hides.",
          strange_weights),
    Entry("old", "The older law of rejuvenation", "`rejuvenate_weights_old()` on standard normal "
          "weights. It takes the logarithm of their mean, which may be negative. In biofx it is "
          "`rejuvenate_weights()`, with a `DeprecationWarning`.", older_law),
    Entry("frozen", "Frozen layers", "What does not require gradients is not to change. The first "
          "of two layers is frozen; d = 1.", frozen),
    Entry("only-layer", "Splitting a model's only layer", "It is the output layer, whose units "
          "would be equal in groups of Γ = 2.", only_layer),
    Entry("signs", "Setting signs", "In biofx they follow from the seed, and are read-only: it "
          "keeps none that could be set or deleted. For other signs, give another seed.", signs),
    Entry("untyped", "`BioModule` for a layer of unknown type", "A module with a `weight` and no "
          "more. The package never counts its activity, and its factors stay 1.", untyped),
]  # fmt: skip
