"""Which trials there are: conditions, seeds, and the grids from which settings are chosen."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from biofx.plasticity import (
    Crystallize,
    FuzzyLearningRates,
    Rejuvenate,
    Restore,
    Schedule,
    UnitTurnover,
    VolumeDependentRates,
)
from trials.learner import Condition

FUZZY = FuzzyLearningRates(distribution="uniform")
CHOOSING = 1000  # seeds from here on choose settings
REPORTED = 100  # seeds from here on are reported; those below had a part in choosing


@dataclass(frozen=True)
class Trial:
    """One run: a protocol with its settings, a condition and a seed."""

    experiment: str
    protocol: str
    condition: Condition
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Equal for trials that do the same."""
        more = ", ".join(f"{k}={v}" for k, v in sorted(self.settings.items()))
        return f"{self.protocol}({more}) | {self.condition.described()} | seed {self.seed}"


@dataclass(frozen=True)
class Family:
    """A condition of the page and the settings among which it is chosen, on seeds of their own."""

    name: str
    candidates: tuple[Condition, ...]


@dataclass(frozen=True)
class Experiment:
    """What one table of the page reports.

    Attributes:
        name: for `--only`, the files and the page.
        protocol: key of `PROTOCOLS`.
        settings: of the protocol.
        families: one condition each; those with several candidates are chosen first.
        seeds: how many are reported.
        choosing: how many seeds choose.
        baseline: names of the families that others are compared with.
        score: "last" of the tasks or a key of the protocol's result.
    """

    name: str
    protocol: str
    families: tuple[Family, ...]
    seeds: int
    settings: dict[str, Any] = field(default_factory=dict)
    choosing: int = 4
    baseline: tuple[str, ...] = ()
    score: str = "last"

    def chosen_among(self) -> Iterator[Trial]:
        """The trials that choose settings."""
        for family in self.families:
            if len(family.candidates) > 1:
                for condition in family.candidates:
                    for seed in range(CHOOSING, CHOOSING + self.choosing):
                        yield Trial(self.name, self.protocol, condition, seed, self.settings)

    def reported(self, chosen: dict[str, Condition]) -> Iterator[Trial]:
        """The trials that the page reports, seed by seed."""
        for seed in range(REPORTED, REPORTED + self.seeds):
            for family in self.families:
                condition = chosen.get(family.name, family.candidates[0])
                yield Trial(self.name, self.protocol, condition, seed, self.settings)


def one(condition: Condition) -> Family:
    return Family(condition.name, (condition,))


def grid(name: str, *conditions: Condition) -> Family:
    return Family(name, tuple(replace(condition, name=name) for condition in conditions))


def adam(name: str, lr: float, *rules: Any, **more: Any) -> Condition:
    return Condition(name, rules, settings={"lr": lr, **more})


def adamw(lr: float, decay: float) -> Condition:
    settings = {"lr": lr, "weight_decay": decay}
    return Condition("AdamW", optimizer="AdamW", settings=settings)


def best_rate(lr: float) -> Family:
    """Plain SGD as the control of what acts like another learning rate."""
    rates = (lr * 2**power for power in range(-1, 5))
    return grid("plain, best learning rate", *(
        Condition("", optimizer="SGD", settings={"lr": rate}) for rate in rates))  # fmt: skip


def every(steps: int) -> Schedule:
    return Schedule(every=steps)


def random_turnover(share: float, steps: int) -> Rejuvenate:
    return Rejuvenate(law="initial", choose="random", max_share=share, schedule=every(steps))


def redo(threshold: float, steps: int = 100) -> UnitTurnover:
    return UnitTurnover(utility="dormant", threshold=threshold, schedule=every(steps))


def permuted(lr: float, tasks: int, seeds: int) -> Experiment:
    """Loss of plasticity: the rules against plain training and the best weight decay."""
    rates = (lr, lr / 3)
    return Experiment(
        "permuted",
        "permuted",
        (
            grid("plain", *(adam("", rate) for rate in (3 * lr, *rates))),
            grid("AdamW", *(
                adamw(rate, d) for rate in rates for d in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0))),
            grid("Restore", *(
                adam("", rate, Restore(strength=rate / k)) for rate in rates for k in (10, 3))),
            grid("random turnover", *(
                adam("", rate, random_turnover(0.01, steps))
                for rate in rates for steps in (10, 50))),
            grid("UnitTurnover (continual backprop)", *(
                adam("", rate, UnitTurnover(rate=share))
                for rate in rates for share in (1e-4, 1e-3))),
            grid("UnitTurnover (ReDo)", *(
                adam("", rate, redo(tau)) for rate in rates for tau in (0.03, 0.1))),
        ),
        seeds,
        {"tasks": tasks},
        baseline=("plain", "AdamW"),
    )  # fmt: skip


def permuted_others(lr: float, tasks: int, seeds: int) -> Experiment:
    """The other rules in the same trial, with the controls of `permuted`."""
    controls = permuted(lr, tasks, seeds)
    rates = (lr, lr / 3)
    return replace(
        controls,
        name="permuted-others",
        families=(
            *(family for family in controls.families if family.name in controls.baseline),
            *(
                grid(name, *(adam("", rate, rule) for rate in rates))
                for name, rule in (
                    ("Rejuvenate (paper)", Rejuvenate(max_share=0.01, schedule=every(500))),
                    ("Rejuvenate (lognormal)",
                     Rejuvenate(law="lognormal", max_share=0.01, schedule=every(500))),
                    ("fuzzy rates", FUZZY),
                    ("Crystallize", Crystallize()),
                )
            ),
        ),
    )  # fmt: skip


def labels(lr: float, tasks: int, seeds: int, count: int, epochs: int) -> Experiment:
    """Memorising random labels anew."""
    rates = (lr, lr / 3)
    return Experiment(
        "labels",
        "labels",
        (
            grid("plain", *(adam("", rate) for rate in (3 * lr, *rates))),
            one(adam("plain, the larger learning rate", lr)),
            grid("AdamW", *(adamw(rate, d) for rate in rates for d in (0.03, 0.1, 0.3, 1.0))),
            grid("Restore", *(
                adam("", rate, Restore(strength=rate / k)) for rate in rates for k in (30, 10))),
            grid("random turnover", *(
                adam("", rate, random_turnover(0.01, steps))
                for rate in rates for steps in (9, 70))),
            grid("UnitTurnover (continual backprop)", *(
                adam("", rate, UnitTurnover(rate=share))
                for rate in rates for share in (1e-4, 1e-3))),
            grid("UnitTurnover (ReDo)", *(
                adam("", rate, redo(tau, 70)) for rate in rates for tau in (0.03, 0.1))),
        ),
        seeds,
        {"tasks": tasks, "count": count, "epochs": epochs},
        baseline=("plain", "AdamW"),
    )  # fmt: skip


def dale(seeds: int, layers: int = 10) -> Experiment:
    """Dale's principle in a deep network."""
    on = {"apply_dales_principle": True}
    lr = {"lr": 1e-3}
    return Experiment(
        "dale",
        "deep",
        (
            one(Condition("plain", settings=lr)),
            one(Condition("plain, half the width", settings=lr, width=0.5)),
            one(Condition("Dale, |w|·sign", config={**on, "dale_initialisation": "signs"},
                          settings=lr)),
            one(Condition("Dale, mirrored pairs", config=on, settings=lr)),
        ),
        seeds,
        {"layers": layers},
        baseline=("plain, half the width", "plain"),
        score="accuracy",
    )  # fmt: skip


def damage(seeds: int, reach: float) -> Experiment:
    """Synapses lost at random."""
    four = {"weight_splitting_Gamma": 4, "weight_splitting_mode": "expand"}
    lr = {"lr": 1e-3}
    return Experiment(
        "damage",
        "damage",
        (
            one(Condition("plain", settings=lr)),
            one(Condition("plain, as many synapses as Γ = 4", settings=lr, width=2.36)),
            one(Condition("Γ = 4, fuzzy rates", settings=lr,
                          config={**four, "fuzzy_lr_distribution": "uniform"})),
            one(Condition("fuzzy rates", (FUZZY,), settings=lr)),
            one(Condition("Crystallize", (Crystallize(),), settings=lr)),
            one(Condition("volume-dependent rates", (VolumeDependentRates(),),
                          settings={"lr": 1e-2})),
        ),
        seeds,
        {"reach": reach},
        baseline=("plain", "plain, as many synapses as Γ = 4"),
        score="0.5",
    )  # fmt: skip


def static(seeds: int, steps: int, count: int) -> Experiment:
    """One task, few images: where fuzzy rates and splitting are said to help."""
    group = {"weight_splitting_Gamma": 2}
    return Experiment(
        f"static{count}",
        "static",
        (
            one(Condition("plain", optimizer="SGD", settings={"lr": 0.1})),
            one(Condition("plain, twice the learning rate", optimizer="SGD",
                          settings={"lr": 0.2})),
            best_rate(0.1),
            one(Condition("fuzzy rates", (FUZZY,), optimizer="SGD",
                          settings={"lr": 0.1})),
            one(Condition("Γ = 2", config=group, optimizer="SGD", settings={"lr": 0.1})),
        ),
        seeds,
        {"steps": steps, "count": count},
        baseline=("plain", "plain, twice the learning rate", "plain, best learning rate"),
        score="accuracy",
    )  # fmt: skip


def born(seeds: int) -> tuple[Experiment, ...]:
    """New synapses under Adam, with and without their own age."""
    return tuple(
        Experiment(
            f"newborn-{'own' if corrected else 'old'}-age", "born",
            (one(Condition("new synapses", settings={"lr": 1e-3})),), seeds,
            {"corrected": corrected}, score="way",
        )
        for corrected in (True, False)
    )  # fmt: skip


def paper(net: str, seeds: int, epochs: int) -> Experiment:
    """The paper's 2 × 2 × 2 ablation, with controls of the learning rate."""
    families = []
    for fuzzy in (False, True):
        for renew in (False, True):
            for split in (False, True):
                config: dict[str, Any] = {}
                if fuzzy:
                    config |= {"fuzzy_lr_distribution": "uniform",
                               "fuzzy_learning_rate_factor_nu": 0.09}  # fmt: skip
                if renew:
                    config |= {"rejuvenate_every": 1, "rejuvenate_before_step": True,
                               "rejuvenation_parameter_dre": 14.0}  # fmt: skip
                if split:
                    config |= {"weight_splitting_Gamma": 2}
                flags = zip(("fuzzy", "rejuvenate", "split"), (fuzzy, renew, split), strict=True)
                name = " + ".join(word for word, on in flags if on) or "plain"
                families.append(
                    one(Condition(name, config=config, optimizer="SGD", settings={"lr": 0.05}))
                )
    families.append(one(Condition("plain, twice the learning rate", optimizer="SGD",
                                  settings={"lr": 0.1})))  # fmt: skip
    families.append(best_rate(0.05))
    return Experiment(
        f"paper-{net}",
        "paper",
        tuple(families),
        seeds,
        {"net": net, "epochs": epochs},
        baseline=("plain", "plain, twice the learning rate", "plain, best learning rate"),
        score="accuracy",
    )


def experiments(*, quick: bool, mnist: bool) -> list[Experiment]:
    """All of them, in the order in which they run: first what matters most."""
    if quick:
        planned = [
            permuted(1e-3 if mnist else 3e-3, tasks=3, seeds=2),
            labels(3e-3, tasks=3, seeds=2, count=64, epochs=4),
            dale(seeds=2, layers=6),
            *born(seeds=2),
            static(seeds=2, steps=100, count=100),
            damage(seeds=2, reach=0.9),
            permuted_others(1e-3 if mnist else 3e-3, tasks=3, seeds=2),
            paper("FCNet", seeds=2, epochs=2),
            paper("ResNet", seeds=2, epochs=1),
        ]
        return [replace(experiment, choosing=1) for experiment in planned]
    return [
        permuted(1e-3 if mnist else 3e-3, tasks=50, seeds=20),
        labels(3e-3, tasks=20, seeds=20, count=320, epochs=20),
        dale(seeds=20),
        *born(seeds=5),
        static(seeds=20, steps=400, count=100),
        static(seeds=20, steps=400, count=1000),
        damage(seeds=20, reach=0.96),
        permuted_others(1e-3 if mnist else 3e-3, tasks=50, seeds=20),
        paper("FCNet", seeds=20, epochs=20),
        paper("ResNet", seeds=10, epochs=30),
    ]
