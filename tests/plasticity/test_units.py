"""Turnover of units: which go, what takes their place, and what the rest of the network notices."""

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import biofx
from biofx.plasticity import Context, DalesPrinciple, GradScheduler, Rule, Schedule, UnitTurnover
from biofx.synapses import Entries, Population, Reader, record_of
from biofx.synapses.record import RECORD
from tools.trials.populations import populate

OFF = biofx.BioConfig(fuzzy_lr_distribution="baseline")
NOW = UnitTurnover(rate=1.0, maturity=0, decay=0.0, schedule=Schedule(every=1, stop=1))


def mlp(*, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
    return populate(biofx.transform(net, OFF))


def conv() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 4, 3),
    )
    return populate(biofx.transform(net, OFF), flat=4)


def one_step(model: nn.Module, x: Tensor, *rules: Rule, lr: float = 0.0) -> tuple[Any, Any]:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    scheduler = GradScheduler(model, optimizer, rules=list(rules))
    model(x).square().mean().backward()
    optimizer.step()
    return scheduler, optimizer


@pytest.mark.parametrize(("make", "shape"), [(mlp, (1, 6)), (conv, (1, 2, 4, 4))])
def test_silencing_by_a_population_is_silencing_the_activation(make: Any, shape: Any) -> None:
    """The test's own populations are right."""
    model = make().eval()
    x = torch.randn(3, *shape[1:])
    for population in record_of(model).populations:
        (reader,) = population.readers
        for unit in range(population.size):
            columns = reader.weight.index(torch.tensor([unit])).flatten()
            silenced = copy.deepcopy(model)
            silenced.get_parameter(reader.weight.name).data[:, columns] = 0
            flat = reader.weight.count > 1

            def cut(module: Any, args: Any, flat: bool = flat, columns: Any = columns) -> Any:
                (h,) = args
                h = h.clone()
                h[:, columns] = 0
                return (h,)

            hooked = copy.deepcopy(model)
            hooked.get_submodule(reader.layer).register_forward_pre_hook(cut)
            torch.testing.assert_close(silenced(x), hooked(x))


@pytest.mark.parametrize(("make", "shape"), [(mlp, (4, 6)), (conv, (4, 2, 4, 4))])
def test_the_network_computes_what_it_computed(make: Any, shape: Any) -> None:
    """Where a unit's activity is the same for all inputs, nothing is lost with it."""
    model = make()
    x = torch.randn(1, *shape[1:]).expand(shape)
    if make is conv:  # and in all places
        x = x[:, :, :1, :1].expand(shape).contiguous() + 0.1
    before = model(x).detach()
    running = copy.deepcopy(model)
    scheduler, _ = one_step(model, x, replace(NOW, only="0.weight"))
    assert scheduler.metrics()["0.weight"]["units_replaced"] == record_of(model).populations[0].size
    torch.testing.assert_close(model(x).detach(), before, rtol=1e-4, atol=1e-5)
    assert not torch.equal(model.get_parameter("0.weight"), running.get_parameter("0.weight"))


def test_what_a_new_unit_has() -> None:
    model = conv()
    for _ in range(3):
        model(torch.randn(4, 2, 4, 4) + 1)
    norm = model.get_submodule("1")
    with torch.no_grad():
        norm.weight.mul_(2)
        norm.bias.add_(1)
    rule = UnitTurnover(rate=0.5, maturity=0, schedule=Schedule(stop=1), only="0.weight")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = GradScheduler(model, optimizer, rules=[rule])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.randn(4, 2, 4, 4)).square().mean().backward()
    optimizer.step()
    assert scheduler.metrics()["0.weight"]["units_replaced"] == 2
    gone = (model.get_parameter("3.weight") == 0).flatten(2).all(2).all(0)
    assert int(gone.sum()) == 2
    for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
        values = getattr(norm, name).detach()
        assert torch.equal(values[gone], torch.full((2,), float(value)))
        assert not torch.isclose(values[~gone], torch.tensor(float(value))).any()
    incoming = model.get_parameter("0.weight").detach()
    assert (incoming[gone].abs() <= 1 / 18**0.5).all()
    assert not torch.isclose(incoming[gone], before["0.weight"][gone]).any()
    torch.testing.assert_close(incoming[~gone], before["0.weight"][~gone], rtol=0, atol=0.011)
    for name, axis in (("0.weight", 0), ("1.weight", 0), ("1.bias", 0), ("3.weight", 1)):
        for moment in ("exp_avg", "exp_avg_sq"):
            state = optimizer.state[model.get_parameter(name)][moment].movedim(axis, 0)
            assert not state[gone].any(), name
            assert state[~gone].any(), name


def reference(hs: list[Tensor], outgoing: list[Tensor], rate: float, maturity: int) -> list[Any]:
    """Continual backprop's choices, written from the paper: (step, unit)."""
    utility, age, owed = [0.0] * hs[0].shape[1], [0] * hs[0].shape[1], 0.0
    chosen = []
    for step, (h, w) in enumerate(zip(hs, outgoing, strict=True), 1):
        for unit in range(len(utility)):
            new = float(h[:, unit].abs().mean()) * float(w[:, unit].abs().sum())
            utility[unit] = 0.99 * utility[unit] + 0.01 * new
            age[unit] += 1
        old = [unit for unit in range(len(age)) if age[unit] > maturity]
        owed += rate * len(old)
        while owed >= 1 and old:
            owed -= 1
            worst = min(old, key=lambda unit: utility[unit] / (1 - 0.99 ** age[unit]))
            old.remove(worst)
            chosen.append((step, worst))
            utility[worst], age[worst] = 0.0, 0
    return chosen


def test_continual_backprop_chooses_as_its_paper_does() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rule = UnitTurnover(rate=0.04, maturity=5, only="0.weight")
    GradScheduler(model, optimizer, rules=[rule])
    hs, outgoing, found = [], [], []
    model.get_submodule("2").register_forward_pre_hook(lambda m, args: hs.append(args[0].detach()))
    # what the optimizer has made of the weights, before units are replaced
    optimizer.register_step_post_hook(lambda *_: None)
    reader = model.get_parameter("2.weight")
    for step in range(1, 41):
        optimizer.zero_grad()
        model(torch.randn(7, 6)).square().mean().backward()
        moved = reader.detach() - 0.1 * reader.grad
        optimizer.step()
        outgoing.append(moved)
        zero = (reader.detach() == 0).all(0)
        found += [(step, unit) for unit in zero.nonzero().flatten().tolist()
                  if (moved[:, unit] != 0).any()]  # fmt: skip
    expected = reference(hs, outgoing, 0.04, 5)
    assert len(expected) > 5
    assert sorted(found) == sorted(expected)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.value(x) * self.gate(x).sigmoid())


def test_units_with_rows_in_a_layer_that_the_rule_does_not_serve() -> None:
    torch.manual_seed(0)
    model = biofx.transform(Gated(), OFF, example_inputs=torch.randn(2, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rule = UnitTurnover(rate=0.2, maturity=0, only="value.*")
    GradScheduler(model, optimizer, rules=[rule])
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    model(torch.randn(7, 6)).square().mean().backward()
    optimizer.step()
    for name in ("value.weight", "gate.weight"):
        new = (model.get_parameter(name) != before[name]).all(1)
        assert new.sum() == 1
        assert (model.out.weight[:, new] == 0).all()


def test_units_that_wait_for_the_start_do_not_all_go_then() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rule = UnitTurnover(rate=0.04, maturity=5, only="0.weight", schedule=Schedule(start=40))
    scheduler = GradScheduler(model, optimizer, rules=[rule])
    counts = []
    for _ in range(60):
        optimizer.zero_grad()
        model(torch.randn(7, 6)).square().mean().backward()
        optimizer.step()
        counts.append(scheduler.metrics(factors=False)["0.weight"]["units_replaced"])
    assert not any(counts[:40])
    assert max(counts) == 1
    assert sum(counts) > 2


def test_dormant_units_are_those_of_redo() -> None:
    model = mlp()
    with torch.no_grad():  # two units that are off, and one that is nearly so
        model.get_parameter("0.bias")[[1, 6]] = -100.0
        model.get_parameter("0.weight")[3].mul_(0.01)
        model.get_parameter("0.bias")[3] = 0.0
    rule = UnitTurnover(utility="dormant", threshold=0.1, maturity=0, only="0.weight",
                        schedule=Schedule(every=3))  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scheduler = GradScheduler(model, optimizer, rules=[rule])
    counts = []
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(64, 6)).square().mean().backward()
        optimizer.step()
        counts.append(scheduler.metrics()["0.weight"]["units_replaced"])
    assert counts == [0, 0, 3]
    silent = (model.get_parameter("2.weight") == 0).all(0)
    assert silent.nonzero().flatten().tolist() == [1, 3, 6]


def test_micro_batches_count_as_one_batch() -> None:
    states = []
    for parts in (1, 4):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = GradScheduler(model, optimizer, rules=[UnitTurnover()])
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
        for part in x.chunk(parts):
            (model(part).square().sum() / 24).backward()
        with torch.no_grad():
            model(100 * x)  # not trained on
        model.eval()(100 * x)
        model.train()
        optimizer.step()
        states.append(scheduler.state_dict()["state"]["UnitTurnover"]["0.weight"]["utility"])
    torch.testing.assert_close(*states)


def test_a_frozen_reader_lets_units_alone() -> None:
    model = mlp()
    model.get_parameter("2.weight").requires_grad_(False)
    scheduler, _ = one_step(model, torch.randn(4, 6), NOW)
    numbers = scheduler.metrics()["0.weight"]
    assert numbers["units_left_alone"] == "2.weight was not trained at this step"
    assert scheduler.metrics()["4.weight"].get("units_left_alone") is None
    assert (model.get_parameter("2.weight") != 0).all()


def test_units_that_cannot_be_followed() -> None:
    model = biofx.transform(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), OFF)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(biofx.PlasticityError, match=r"give biofx.transform example_inputs"):
        GradScheduler(model, optimizer, rules=[UnitTurnover()])
    lost = Population(
        layer="0", size=4, incoming=(Entries(name="0.weight"),), reason="softmax over units"
    )
    model.__dict__[RECORD] = replace(
        record_of(model), wiring=replace(record_of(model).wiring, units=(lost,))
    )
    with pytest.warns(
        UserWarning, match=r"no unit of this model \(0: softmax over units\)"
    ) as told:
        scheduler = GradScheduler(model, optimizer, rules=[UnitTurnover()])
    assert [warning.filename for warning in told] == [__file__]
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert scheduler.metrics()["0.weight"]["units_left_alone"] == "softmax over units"


def test_why_units_are_left_alone() -> None:
    model = populate(biofx.transform(
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
        OFF.replace(overrides={"2": {"weight_splitting_Gamma": 2}}),
    ))  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"2\.weight is split into Γ = 2"):
        GradScheduler(model, optimizer, rules=[UnitTurnover()])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (UnitTurnover(utility="age"), "utility='age' is not one of"),  # type: ignore[arg-type]
        (UnitTurnover(rate=0.0), r"rate=0\.0 must be a number in \(0, 1\]"),
        (UnitTurnover(threshold=1.0), r"threshold=1\.0 must be a number in \[0, 1\)"),
        (UnitTurnover(maturity=1.5), "maturity=1.5 must be a whole number"),  # type: ignore[arg-type]
        (UnitTurnover(decay=1.0), r"decay=1\.0"),
    ],
)
def test_bad_settings(rule: UnitTurnover, message: str) -> None:
    model = mlp()
    with pytest.raises(biofx.PlasticityError, match=message):
        GradScheduler(model, torch.optim.SGD(model.parameters(), lr=0.1), rules=[rule])


def test_hooks_travel_and_go() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = GradScheduler(model, optimizer, rules=[UnitTurnover()])
    hooked = model.get_submodule("2")
    assert hooked._forward_pre_hooks
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(torch.ones(2, 6)), model(torch.ones(2, 6)))
    scheduler.detach()
    assert not hooked._forward_pre_hooks


@pytest.mark.slow
def test_is_compiled_without_a_break() -> None:
    states = []
    for compiled in (False, True):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        rule = UnitTurnover(rate=0.1, maturity=2)
        scheduler = GradScheduler(model, optimizer, rules=[rule])
        run: Any = torch.compile(model, fullgraph=True, backend="eager") if compiled else model
        generator = torch.Generator().manual_seed(0)
        for _ in range(6):
            optimizer.zero_grad()
            run(torch.randn(8, 6, generator=generator)).square().mean().backward()
            optimizer.step()
        states.append(scheduler.state_dict()["state"]["UnitTurnover"]["0.weight"])
    for name, value in states[0].items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(states[1][name], value)
    assert states[0]["age"].min() < 3


def test_a_model_that_was_compiled_and_run_before() -> None:
    """The compiler does not see hooks that come later."""
    states = []
    for compiled in (False, True):
        torch.compiler.reset()
        model = mlp()
        run: Any = torch.compile(model, backend="eager") if compiled else model
        generator = torch.Generator().manual_seed(0)
        run(torch.randn(8, 6, generator=generator)).sum().backward()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = GradScheduler(model, optimizer, rules=[UnitTurnover(rate=0.1, maturity=2)])
        for _ in range(6):
            optimizer.zero_grad()
            run(torch.randn(8, 6, generator=generator)).square().mean().backward()
            optimizer.step()
        states.append(scheduler.state_dict()["state"]["UnitTurnover"]["0.weight"])
    assert states[0]["age"].min() < 3
    assert torch.equal(states[0]["age"], states[1]["age"])


@pytest.mark.parametrize("count", [1, 3])
def test_entries(count: int) -> None:
    entries = Entries(name="w", axis=1, start=2, stride=count, count=count)
    found = entries.index(torch.tensor([0, 2]))
    assert found.tolist() == [
        [2 + j for j in range(count)],
        [2 + 2 * count + j for j in range(count)],
    ]
    last = Entries(name="w", count=3, step=4)  # channels last: unit u has u, u + 4, u + 8
    assert last.index(torch.tensor([1])).tolist() == [[1, 5, 9]]


def test_other_rules_forget_too() -> None:
    seen: list[Tensor] = []

    class Watching(Rule):
        def replaced(self, context: Context, mask: Tensor) -> None:
            seen.append(mask.float().mean())

    model = mlp()
    one_step(model, torch.randn(4, 6), Watching(), NOW)
    assert len(seen) == 3
    assert all(share == 1 for share in seen[:2])  # all units: all their synapses are new


def test_readers_without_bias_and_several_readers() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.a = nn.Linear(4, 6), nn.Linear(6, 3, bias=False)
            self.b = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.fc(x))
            return torch.cat([self.a(h), self.b(h)], 1)

    torch.manual_seed(0)
    model = biofx.transform(Two(), OFF)
    units = Population(
        layer="fc",
        size=6,
        incoming=(Entries(name="fc.weight"),),
        vectors={"bias": (Entries(name="fc.bias"),)},
        readers=(
            Reader(layer="a", weight=Entries(name="a.weight", axis=1)),
            Reader(layer="b", weight=Entries(name="b.weight", axis=1), bias="b.bias"),
        ),
    )
    model.__dict__[RECORD] = replace(
        record_of(model), wiring=replace(record_of(model).wiring, units=(units,))
    )
    x = torch.randn(1, 4).expand(3, 4)
    before = model(x).detach()
    one_step(model, x, NOW)
    after = model(x).detach()
    torch.testing.assert_close(after[:, 3:], before[:, 3:])  # its bias has taken over
    assert not after[:, :3].any()
    assert not model.get_parameter("fc.bias").any()


def test_each_of_two_optimizers_renews_its_own_units() -> None:
    torch.manual_seed(0)
    halves = [nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6)) for _ in range(2)]
    bio = biofx.transform(nn.Sequential(*halves), OFF, example_inputs=torch.randn(2, 6))
    optimizers = [torch.optim.SGD(half.parameters(), lr=0.1) for half in halves]
    rule = UnitTurnover(rate=0.1, maturity=2)
    scheduler = GradScheduler(bio, optimizers, rules=[rule])
    replaced = dict.fromkeys(("0.0.weight", "1.0.weight"), 0)
    for _ in range(8):
        bio.zero_grad()
        bio(torch.randn(8, 6)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
        for name in replaced:
            replaced[name] += scheduler.metrics(factors=False)[name]["units_replaced"]
    first, second = replaced.values()
    assert first == second > 0


class Signed(nn.Module):
    """Units with constants, and slopes, of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.slopes = nn.Linear(6, 8), nn.PReLU(8, init=0.1)
        self.out = nn.Linear(8, 2)
        self.register_buffer("sign", torch.tensor([1.0] * 6 + [-1.0] * 2))
        self.register_buffer("offset", torch.arange(8.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.slopes(self.first(x)) * self.sign + self.offset)


@pytest.mark.parametrize("rule", [UnitTurnover(rate=0.5, maturity=0), DalesPrinciple()])
@pytest.mark.filterwarnings("ignore:Dale's principle starts as")
def test_constants_of_units_stay(rule: Rule) -> None:
    torch.manual_seed(0)
    model = biofx.transform(Signed(), OFF, example_inputs=torch.randn(2, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    scheduler = GradScheduler(model, optimizer, rules=[rule])
    model(torch.randn(7, 6)).square().mean().backward()
    optimizer.step()
    told = scheduler.metrics()
    for name, buffer in before.items():
        assert torch.equal(model.get_buffer(name), buffer)
    assert (model.slopes.weight == 0.1).all()
    if isinstance(rule, UnitTurnover):
        assert told["first.weight"]["units_replaced"] > 0
    else:
        assert told["out.weight"]["dale"] == (
            "signs: constants of the model differ by units of first"
        )
