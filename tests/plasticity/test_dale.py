"""Dale's principle: mirrored pairs, signs, and what is done where units cannot be followed."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import biofx
from biofx.plasticity import (
    Context,
    DalesPrinciple,
    GradScheduler,
    Rejuvenate,
    Restore,
    Rule,
    Schedule,
    UnitTurnover,
)
from tools.trials.populations import populate

OFF = biofx.BioConfig(fuzzy_lr_distribution="baseline")


def deep(width: int, layers: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    sizes = [10, *[width] * (layers - 1), 4]
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        parts += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 4, 4),
    )
    with torch.no_grad():
        net[1].weight.uniform_(0.5, 1.5)
        net[1].running_mean.normal_()
    return net


def mirrored(net: nn.Module, flat: int = 1, **options: Any) -> tuple[Any, Any, Any]:
    bio = populate(biofx.transform(net, OFF), flat=flat)
    optimizer = torch.optim.Adam(bio.parameters(), lr=0.01)
    return bio, optimizer, GradScheduler(bio, optimizer, rules=[DalesPrinciple()], **options)


def halved(net: nn.Sequential) -> nn.Sequential:
    """The free network of half the width that a mirrored one begins as: every second unit.

    Its weights are v = w·√2, w being those that were drawn for the even units.
    """
    half = copy.deepcopy(net)
    layers = [m for m in half if isinstance(m, nn.Linear | nn.Conv2d)]
    for place, layer in enumerate(layers):
        weight = layer.weight.detach()
        if place:
            if isinstance(layer, nn.Linear) and isinstance(layers[place - 1], nn.Conv2d):
                rows = weight.view(len(weight), -1, 4)[:, 0::2].flatten(1)
            else:
                rows = weight[:, 0::2]
            weight = rows * 2**0.5
        bias = layer.bias.detach()
        if place < len(layers) - 1:
            weight, bias = weight[0::2], bias[0::2]
        layer.weight, layer.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    for norm in half:
        if isinstance(norm, nn.BatchNorm2d):
            for name in ("weight", "bias"):
                setattr(norm, name, nn.Parameter(getattr(norm, name).detach()[0::2].clone()))
            for name in ("running_mean", "running_var"):
                setattr(norm, name, getattr(norm, name)[0::2].clone())
    return half


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_begins_as_a_free_network_of_half_the_width(kind: str, training: bool) -> None:
    net = deep(12) if kind == "mlp" else convolutional()
    half = halved(net).train(training)
    bio, _, _ = mirrored(net, flat=4)
    bio.train(training)
    x = torch.randn(5, 10) if kind == "mlp" else torch.randn(5, 2, 6, 6)
    torch.testing.assert_close(bio(x), half(x), rtol=1e-4, atol=1e-5)


def test_pairs_share_the_size_that_was_drawn_and_drift_apart() -> None:
    net = deep(256)
    drawn = net[4].weight.detach().clone()
    bio, optimizer, scheduler = mirrored(net)
    weight = bio.get_parameter("4.weight").detach()
    assert (weight[:, 0::2] >= 0).all()
    assert (weight[:, 1::2] <= 0).all()
    assert torch.equal(weight[0::2], weight[1::2])  # incoming
    assert float(weight.square().mean() / drawn.square().mean()) == pytest.approx(1, abs=0.05)
    # what the layer does to pairs that say the same has no common mode
    largest = float(torch.linalg.matrix_norm(weight[0::2, 0::2] + weight[0::2, 1::2], 2))
    signed = float(torch.linalg.matrix_norm(drawn.abs(), 2))
    assert largest < 0.2 * signed
    assert not torch.equal(bio.get_parameter("0.weight")[0], bio.get_parameter("0.weight")[2])
    assert (bio.get_parameter("0.weight") < 0).any(0).all()  # the input layer is free
    assert (bio.get_parameter("0.weight") > 0).any(0).all()
    for _ in range(30):
        optimizer.zero_grad()
        bio(torch.randn(16, 10)).square().mean().backward()
        optimizer.step()
    assert (weight[:, 0::2] >= 0).all()
    assert (weight[:, 1::2] <= 0).all()
    assert not torch.equal(weight[0::2], weight[1::2])
    told = {name: numbers["dale"] for name, numbers in scheduler.metrics().items()}
    assert told.pop("0.weight") == "free: inputs are no units of the network"
    assert told == {f"{2 * i}.weight": "mirrored" for i in range(1, 6)}


def updated(bio: Any, optimizer: Any, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        bio(torch.randn(16, 10)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("steps", [0, 1, 30])
@pytest.mark.parametrize("backwards", [False, True])
def test_weights_that_obey_stay_as_they_are(steps: int, backwards: bool) -> None:
    bio, optimizer, _ = mirrored(deep(12))
    updated(bio, optimizer, range(steps))
    again = populate(biofx.transform(deep(12), OFF))
    again.load_state_dict(bio.state_dict())
    parameters = list(again.parameters())
    # Readers may be seen before those whose units they read.
    other = torch.optim.Adam(parameters[::-1] if backwards else parameters, lr=0.01)
    GradScheduler(again, other, rules=[DalesPrinciple()])
    torch.testing.assert_close(again.state_dict(), bio.state_dict(), rtol=0, atol=0)


def test_units_come_in_pairs_for_readers_that_obey() -> None:
    """If none does, nothing of them is changed: now, or when training goes on."""
    plain = deep(12, 3)
    rules = [DalesPrinciple(only=("0.weight", "2.weight"))]
    bio = populate(biofx.transform(copy.deepcopy(plain), OFF))
    optimizer = torch.optim.Adam(bio.parameters(), lr=0.01)
    scheduler = GradScheduler(bio, optimizer, rules=rules)
    assert torch.equal(bio[0].weight[0::2], bio[0].weight[1::2])
    assert torch.equal(bio[2].weight[0::2], mirrored(plain)[0][2].weight[0::2])
    assert not torch.equal(bio[2].weight[0::2], bio[2].weight[1::2])
    updated(bio, optimizer, range(20))
    before = copy.deepcopy(bio.state_dict())
    scheduler.detach()
    GradScheduler(bio, torch.optim.Adam(bio.parameters(), lr=0.01), rules=rules)
    torch.testing.assert_close(bio.state_dict(), before, rtol=0, atol=0)


def test_pairs_do_not_depend_on_which_layer_is_seen_first() -> None:
    ends = []
    for backwards in (False, True):
        bio = populate(biofx.transform(deep(12), OFF))
        parameters = list(bio.parameters())
        optimizer = torch.optim.Adam(parameters[::-1] if backwards else parameters)
        GradScheduler(bio, optimizer, rules=[DalesPrinciple()])
        ends.append(bio.state_dict())
    torch.testing.assert_close(*ends, rtol=0, atol=0)
    assert torch.equal(ends[0]["0.weight"][0::2], ends[0]["0.weight"][1::2])


def test_a_deep_network_learns() -> None:
    """Ten layers, 200 steps: |w|·sign has hardly begun."""
    torch.manual_seed(0)
    x = torch.rand(256, 10)
    y = (x[:, 0] > 0.5).long() + 2 * (x[:, 1] > 0.5).long()
    losses = {}
    for way in ("mirrored", "signs"):
        net = deep(64, layers=10)
        for layer in net[::2]:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        bio = populate(biofx.transform(net, OFF))
        optimizer = torch.optim.Adam(bio.parameters(), lr=1e-3)
        GradScheduler(bio, optimizer, rules=[DalesPrinciple(initialisation=way)])
        for _ in range(200):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(bio(x), y)
            loss.backward()
            optimizer.step()
        losses[way] = float(loss.detach())
    assert losses["mirrored"] < 0.05 < 0.4 < losses["signs"], losses


@pytest.mark.parametrize("early", [False, True])
def test_replaced_synapses_get_their_units_sign(early: bool) -> None:
    bio = populate(biofx.transform(deep(12), OFF))
    optimizer = torch.optim.Adam(bio.parameters(), lr=0.0)
    renew = Rejuvenate(law="initial", choose="random", max_share=0.5, before_step=early)
    rules = [DalesPrinciple(), Restore(strength=0.01), renew, UnitTurnover(rate=0.2, maturity=1)]
    for order in (rules, rules[::-1]):
        scheduler = GradScheduler(bio, optimizer, rules=order)
        for _ in range(6):
            optimizer.zero_grad()
            bio(torch.randn(8, 10)).square().mean().backward()
            optimizer.step()
            for place in (2, 4, 6, 8, 10):
                weight = bio.get_parameter(f"{place}.weight")
                assert (weight[:, 0::2] >= 0).all()
                assert (weight[:, 1::2] <= 0).all()
                # drawn anew, not set to 0 where the draw had the other sign
                assert (weight != 0).float().mean() > 0.3
        scheduler.detach()


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ((6, 7, 4), "signs: 0 has an odd number of units"),
        ((6, 8, 4), "mirrored"),
    ],
)
def test_where_pairs_do_not_fit(sizes: tuple[int, ...], reason: str) -> None:
    first, second = nn.Linear(*sizes[:2]), nn.Linear(*sizes[1:])
    bio = populate(biofx.transform(nn.Sequential(first, nn.ReLU(), second), OFF))
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.1)
    if reason == "mirrored":
        scheduler = GradScheduler(bio, optimizer, rules=[DalesPrinciple()])
    else:
        with pytest.warns(UserWarning, match=r"\|w\|·sign.*odd number of units"):
            scheduler = GradScheduler(bio, optimizer, rules=[DalesPrinciple()])
    bio(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    assert scheduler.metrics()["2.weight"]["dale"] == reason


def test_units_that_do_not_obey_are_not_mirrored() -> None:
    bio = populate(biofx.transform(deep(8, layers=3), OFF))
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.1)
    rule = DalesPrinciple(only=("0.weight", "4.weight"))
    with pytest.warns(UserWarning, match="2 does not obey the principle"):
        GradScheduler(bio, optimizer, rules=[rule])


def test_without_a_graph_it_says_so() -> None:
    bio = biofx.transform(deep(8, layers=3), OFF)
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="example_inputs=….*dale_initialisation"):
        GradScheduler(bio, optimizer, rules=[DalesPrinciple()])
    quiet = biofx.transform(deep(8, layers=3), OFF)
    optimizer = torch.optim.SGD(quiet.parameters(), lr=0.1)
    GradScheduler(quiet, optimizer, rules=[DalesPrinciple(initialisation="signs")])


def test_signs_of_incoming_weights_are_warned_of() -> None:
    bio = biofx.transform(deep(8, layers=3), OFF)
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"dale_axis=\"post\".*silent"):
        GradScheduler(bio, optimizer, rules=[DalesPrinciple(axis="post")])


def test_bad_initialisation() -> None:
    bio = biofx.transform(deep(8, layers=3), OFF)
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.1)
    rule = DalesPrinciple(initialisation="mirror")  # type: ignore[arg-type]
    with pytest.raises(biofx.PlasticityError, match="must be 'mirrored' or 'signs'"):
        GradScheduler(bio, optimizer, rules=[rule])


def test_the_force_of_restore_keeps_the_signs_it_began_with() -> None:
    """w₀ is what the other rules have made of the weights, whatever the order of the rules."""
    bio = populate(biofx.transform(deep(8, layers=3), OFF))
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.0)
    scheduler = GradScheduler(bio, optimizer, rules=[Restore(strength=0.5), DalesPrinciple()])
    start = scheduler.state_dict()["state"]["Restore"]["2.weight"]["start"]
    assert torch.equal(start, bio.get_parameter("2.weight").detach())
    assert (start[:, 0::2] >= 0).all()


def test_a_rule_of_ones_own_may_replace_synapses_before_the_step() -> None:
    class Own(Rule):
        def before_update(self, context: Context) -> Tensor:
            mask = context.uniform() < 0.5
            context.weight.copy_(torch.where(mask, context.normal("new"), context.weight))
            return mask

    bio = populate(biofx.transform(deep(8, layers=3), OFF))
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.0)
    GradScheduler(bio, optimizer, rules=[Own(schedule=Schedule(stop=1)), DalesPrinciple()])
    bio(torch.ones(2, 10)).sum().backward()
    optimizer.step()
    weight = bio.get_parameter("2.weight")
    assert (weight[:, 0::2] >= 0).all()
    assert (weight[:, 1::2] <= 0).all()


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.next = nn.Conv2d(1, 5, 3), nn.Conv2d(5, 3, 1)
        self.out = nn.Linear(5 * 4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.conv(x).relu()
        return self.next(h), self.out(h.flatten(1))


def test_a_unit_has_one_sign_in_all_layers_that_read_it() -> None:
    bio = biofx.transform(TwoReaders(), example_inputs=torch.randn(2, 1, 4, 4))
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.1)
    GradScheduler(bio, optimizer, rules=[DalesPrinciple(initialisation="signs")])
    signs = bio.next.weight.detach()[0, :, 0, 0].sign()
    assert torch.equal(bio.next.weight.sign(), signs.view(1, 5, 1, 1).expand(3, 5, 1, 1))
    assert torch.equal(bio.out.weight.sign(), signs.repeat_interleave(4).expand(2, 20))


@pytest.mark.parametrize("gamma", [0, 2])
def test_a_unit_has_one_sign_in_all_rows_of_a_depthwise_convolution(gamma: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 2, 1)
    )
    config = biofx.BioConfig(weight_splitting_Gamma=gamma, weight_splitting_mode="expand")
    bio = biofx.transform(net, config, example_inputs=torch.randn(2, 3, 6, 6))
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.1)
    GradScheduler(bio, optimizer, rules=[DalesPrinciple(initialisation="signs")])
    rows = bio.get_parameter("2.weight").detach().sign().flatten(1)
    each = rows.view(8, -1)
    assert torch.equal(each, each[:, :1].expand_as(each))
    assert set(each[:, 0].tolist()) == {-1.0, 1.0}
