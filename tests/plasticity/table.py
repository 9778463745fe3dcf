"""One table of all rules; it drives every test that all of them must pass."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

import biofx
from biofx.plasticity import GradScheduler
from biofx.synapses import Entries, Population, record_of
from biofx.synapses.record import RECORD
from tools.trials.populations import populate


@dataclass(frozen=True)
class Entry:
    """A rule as a configuration turns it on.

    Attributes:
        name: for test ids.
        config: fields of `BioConfig`.
        acts: whether weights differ from plain training.
        random: whether the seed matters.
        state: bytes of state per synapse, without optimizer state.
        only: parameters that it changes, if not all.
        steps: steps after which it has shown everything it does.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    acts: bool = True
    random: bool = True
    state: int = 0
    steps: int = 6
    only: tuple[str, ...] = ()


def fuzzy(distribution: str, *, state: int = 0, acts: bool = True, **more: Any) -> Entry:
    name = distribution + "".join(f"-{key[9:]}" for key in more if key.startswith("fuzzy_lr_"))
    config = {"fuzzy_lr_distribution": distribution, **more}
    return Entry(name, config, acts=acts, random=acts, state=state)


# Of `Followed`: what belongs to units that can be followed.
UNITS = ("stem.weight", "conv.weight", "hidden.weight", "fc.weight")
DALE = {"apply_dales_principle": True, "dale_initialisation": "signs"}
OFF = {"fuzzy_lr_distribution": "baseline"}
MOVING = {"fuzzy_lr_dynamic": True, "fuzzy_lr_update_freq": 2}

RULES = [
    fuzzy("baseline", acts=False),
    fuzzy("uniform"),
    fuzzy("normal"),
    fuzzy("lognormal"),
    fuzzy("gamma"),
    fuzzy("beta"),
    fuzzy("layer_adaptive"),
    fuzzy("weight_adaptive", state=4),
    fuzzy("weight_adaptive", state=4, **MOVING),
    fuzzy("temporal"),
    Entry(
        "temporal-dynamic",
        {
            "fuzzy_lr_distribution": "temporal",
            "fuzzy_lr_dynamic": True,
            "fuzzy_lr_update_freq": 1,
            "fuzzy_lr_decay": 0.9,
        },
        state=4,
        steps=12,
    ),
    fuzzy("activity"),
    fuzzy("activity", **MOVING),
    Entry("volume", {**OFF, "volume_dependent_every": 1}),
    Entry(
        "crystallize",
        {**OFF, "crystallize_every": 1, "crystal_thresh": 0.05},
        random=False,
        state=4,
    ),
    Entry(
        "crystallize-floor",
        {**OFF, "crystallize_every": 2, "crystal_thresh": 0.05, "crystal_floor": 0.5},
        random=False,
        state=4,
    ),
    Entry("rejuvenate", {**OFF, "rejuvenate_every": 3}, state=4),
    Entry(
        "rejuvenate-lognormal",
        {**OFF, "rejuvenate_every": 3, "rejuvenate_law": "lognormal"},
        state=4,
    ),
    Entry(
        "rejuvenate-capped",
        {**OFF, "rejuvenate_every": 2, "rejuvenate_max_share": 0.05},
        state=4,
    ),
    Entry(
        "rejuvenate-initial",
        {
            **OFF,
            "rejuvenate_every": 2,
            "rejuvenate_law": "initial",
            "rejuvenate_choose": "random",
            "rejuvenate_max_share": 0.1,
        },
        state=4,
    ),
    Entry(
        "rejuvenate-weak-before",
        {
            **OFF,
            "rejuvenate_every": 2,
            "rejuvenate_choose": "weak",
            "rejuvenate_max_share": 0.1,
            "rejuvenate_before_step": True,
        },
        state=4,
    ),
    Entry("restore", {**OFF, "restore_strength": 0.05}, random=False, state=4),
    Entry(
        "unit-turnover",
        {
            **OFF,
            "unit_turnover_every": 1,
            "unit_turnover_rate": 0.2,
            "unit_turnover_maturity": 1,
        },
        state=4,
        only=UNITS,
    ),
    Entry(
        "unit-turnover-dormant",
        {
            **OFF,
            "unit_turnover_every": 2,
            "unit_turnover_utility": "dormant",
            "unit_turnover_threshold": 0.95,
            "unit_turnover_maturity": 2,
        },
        state=4,
        only=UNITS,
    ),
    Entry("dale", {**OFF, **DALE}),
    Entry("dale-mirrored", {**OFF, "apply_dales_principle": True}),
    Entry("dale-post", {**OFF, **DALE, "dale_axis": "post"}),
    Entry(
        "everything",
        {
            "fuzzy_lr_distribution": "lognormal",
            "volume_dependent_every": 2,
            "crystallize_every": 1,
            "crystal_thresh": 0.05,
            "rejuvenate_every": 3,
            "unit_turnover_every": 2,
            "unit_turnover_rate": 0.2,
            "unit_turnover_maturity": 1,
            "restore_strength": 0.01,
            "apply_dales_principle": True,
        },
        state=12,
    ),
]

IDS = [entry.name for entry in RULES]

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}


class Net(nn.Module):
    """Convolutions (plain, grouped, transposed), a linear layer; nothing with a running state."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        x = torch.relu(self.grouped(x)) + x
        return torch.relu(self.up(x)).mean((2, 3))


class Followed(Net):
    """With two layers more, whose units can be followed to the layers that read them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv = nn.Conv2d(6, 8, 3, padding=1)
        self.hidden = nn.Linear(4, 6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(torch.tanh(self.stem(x)))
        return self.fc(torch.tanh(self.hidden(x)))


def batches(count: int, *, size: int = 8, dtype: torch.dtype = torch.float32) -> list[Any]:
    generator = torch.Generator().manual_seed(7)
    return [
        (
            torch.randn(size, 3, 6, 6, generator=generator).to(dtype),
            torch.randn(size, 5, generator=generator).to(dtype),
        )
        for _ in range(count)
    ]


def make(config: dict[str, Any] | None = None, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    net = original(config or {})().to(dtype)
    bio = biofx.transform(net, biofx.BioConfig(**(config or {})))
    return follow(bio) if isinstance(net, Followed) else bio


def original(config: dict[str, Any]) -> type[Net]:
    """The network that a configuration is tested on."""
    settings = biofx.BioConfig(**config)
    mirrored = settings.apply_dales_principle and settings.dale_initialisation == "mirrored"
    return Followed if settings.unit_turnover_every or mirrored else Net


def follow(model: nn.Module) -> nn.Module:
    """Give a transformed `Followed` its populations."""
    populate(model, ("stem", "conv"), ("hidden", "fc"))
    added = "several layers produce them"
    left = [("conv", 8, added), ("grouped", 8, added)]
    record = record_of(model)
    lost = tuple(
        Population(layer=name, size=size, incoming=(Entries(name=f"{name}.weight"),), reason=why)
        for name, size, why in [*left, ("up", 4, "they are made in groups")]
    )
    populations = (*record.populations, *lost)
    model.__dict__[RECORD] = replace(record, wiring=replace(record.wiring, units=populations))
    return model


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: list[Any]) -> None:
    for x, y in data:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()


def run(entry: Entry, optimizer: str = "adamw", **options: Any) -> tuple[nn.Module, GradScheduler]:
    model = make(entry.config)
    made = OPTIMIZERS[optimizer](model.parameters())
    scheduler = GradScheduler(model, made, **options)
    train(model, made, batches(entry.steps))
    return model, scheduler


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
