"""Which synapses are replaced, by what, and when; and the force that restores them."""

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import biofx
from biofx.plasticity import GradScheduler, Rejuvenate, Restore, Schedule
from biofx.synapses.initial import initial_law

OFF = biofx.BioConfig(fuzzy_lr_distribution="baseline")

LAYERS = {
    "linear": lambda: nn.Linear(50, 60),
    "conv": lambda: nn.Conv2d(12, 16, 3, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(12, 16, 3, groups=2),
    "conv1d": lambda: nn.Conv1d(20, 30, 5),
    "embedding": lambda: nn.Embedding(60, 50),
    "bilinear": lambda: nn.Bilinear(20, 12, 14),
    "attention": lambda: nn.MultiheadAttention(32, 4),
    "lstm": lambda: nn.LSTM(20, 24),
    "gru cell": lambda: nn.GRUCell(20, 24),
}


def replaced(layer: nn.Module, name: str, rule: Rejuvenate) -> tuple[Tensor, Tensor, Any]:
    """Weights before and after one step of a rule, and the scheduler."""
    bio = biofx.transform(nn.ModuleDict({"layer": layer}), OFF)
    weight = bio.get_parameter(f"layer.{name}")
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scheduler = GradScheduler(bio, optimizer, rules=[rule])
    before = weight.detach().clone()
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    return before, weight.detach(), scheduler


ALL = Rejuvenate(law="initial", choose="random", max_share=0.999)


@pytest.mark.parametrize("kind", LAYERS)
def test_new_synapses_are_drawn_as_pytorch_draws_them(kind: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    names = [name for name, p in layer.named_parameters() if p.dim() > 1 and "out_proj" not in name]
    for name in names:
        before, after, scheduler = replaced(LAYERS[kind](), name, ALL)
        state = scheduler.state_dict()["state"]["Rejuvenate"][f"layer.{name}"]
        law = initial_law(layer, tuple(before.shape))
        assert law is not None
        assert (state["initial_law"], state["initial_scale"]) == (law.kind, law.scale)
        new = after[after != before]
        assert new.numel() > 0.99 * before.numel()
        torch.manual_seed(1)
        theirs = torch.cat([dict(LAYERS[kind]().named_parameters())[name].flatten()
                            for _ in range(8)])  # fmt: skip
        assert stats.ks_2samp(new, theirs.detach()).pvalue > 1e-4


def test_an_initialisation_of_ones_own_is_kept() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(100, 100)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    before, after, _ = replaced(layer, "weight", ALL)
    assert float(after.std() / before.std()) == pytest.approx(1, abs=0.03)
    assert stats.normaltest(after.flatten()).pvalue > 1e-4


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_initial_law_of_weights_of_any_size(size: float) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(40, 50)
    nn.init.normal_(layer.weight, std=size)
    _, after, _ = replaced(layer, "weight", ALL)
    assert float(after.double().std()) / size == pytest.approx(1, rel=0.1)


def test_layers_of_other_types_go_by_their_weights() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(0.02 * torch.randn(80, 80))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.kernel

    @biofx.register(Own)
    def own(module: Own) -> list[Any]:
        from biofx.synapses import Axes

        return [Axes("kernel", "linear", post=1, pre=0)]

    torch.manual_seed(0)
    _, after, scheduler = replaced(Own(), "kernel", ALL)
    assert float(after.std()) == pytest.approx(0.02, rel=0.05)
    assert scheduler.state_dict()["state"]["Rejuvenate"]["layer.kernel"]["initial_law"] == "normal"


def test_random_is_a_share_by_chance() -> None:
    torch.manual_seed(0)
    rule = Rejuvenate(law="initial", choose="random", max_share=0.2)
    before, after, scheduler = replaced(nn.Linear(200, 200), "weight", rule)
    new = before != after
    assert float(new.float().mean()) == pytest.approx(0.2, abs=0.01)
    assert scheduler.metrics()["layer.weight"]["turnover"] == pytest.approx(
        float(new.float().mean())
    )
    # whatever their size, and whatever they become
    assert stats.ks_2samp(before[new].abs(), before[~new].abs()).pvalue > 1e-3
    assert stats.kstest(after[new] * 200**0.5, stats.uniform(-1, 2).cdf).pvalue > 1e-3


@pytest.mark.parametrize("law", ["uniform", "lognormal", "initial"])
def test_weak_are_the_smallest(law: Any) -> None:
    torch.manual_seed(0)
    rule = Rejuvenate(law=law, choose="weak", max_share=0.1)
    before, after, _ = replaced(nn.Linear(50, 40), "weight", rule)
    new = before != after
    assert int(new.sum()) == 200
    assert float(before[new].abs().max()) <= float(before[~new].abs().min())


@pytest.mark.parametrize("outlier", [10.0, 1e6, 1e-30])
def test_weak_are_the_smallest_whatever_the_largest(outlier: float) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(50, 40)
    layer.weight.data[0] *= outlier
    rule = Rejuvenate(law="initial", choose="weak", max_share=0.01)
    before, after, _ = replaced(layer, "weight", rule)
    new = before != after
    assert int(new.sum()) == 20
    assert float(before[new].abs().max()) <= float(before[~new].abs().min())


def test_a_share_of_less_than_a_synapse_comes_now_and_then() -> None:
    torch.manual_seed(0)
    bio = biofx.transform(nn.Sequential(nn.Linear(5, 4, bias=False)), OFF)
    weight = bio.get_parameter("0.weight")
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scheduler = GradScheduler(
        bio, optimizer, rules=[Rejuvenate(law="initial", choose="weak", max_share=0.01)]
    )
    counts = []
    for _ in range(400):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        counts.append(round(20 * scheduler.metrics(factors=False)["0.weight"]["turnover"]))
    assert set(counts) == {0, 1}
    assert 50 < sum(counts) < 115  # 80 are expected


def test_chance_decides_among_zeros() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(50, 40)
    with torch.no_grad():
        layer.weight[:, ::2] = 0.0
    rule = Rejuvenate(law="lognormal", choose="weak", max_share=0.1)
    before, after, _ = replaced(layer, "weight", rule)
    new = before != after
    assert int(new.sum()) == 200
    assert not before[new].any()
    assert int(new.any(1).sum()) > 35  # all over the matrix


@pytest.mark.parametrize("choose", ["random", "weak"])
def test_a_share_must_be_given(choose: Any) -> None:
    with pytest.raises(
        biofx.PlasticityError, match=r"layer\.weight: say how many, e\.g\. max_share"
    ):
        replaced(nn.Linear(4, 4), "weight", Rejuvenate(choose=choose))


def test_bad_settings() -> None:
    for rule, message in (
        (Rejuvenate(law="normal"), "law='normal' is not one of"),  # type: ignore[arg-type]
        (Rejuvenate(choose="strong"), "choose='strong' is not one of"),  # type: ignore[arg-type]
        (Rejuvenate(before_step=1), "before_step=1 must be True or False"),  # type: ignore[arg-type]
    ):
        with pytest.raises(biofx.PlasticityError, match=message):
            replaced(nn.Linear(4, 4), "weight", rule)


def test_before_the_step_is_the_papers_order() -> None:
    """Synapses are replaced at the gradient of the old ones, and then moved by it."""
    ends = []
    for early in (True, False):
        torch.manual_seed(0)
        bio = biofx.transform(nn.Sequential(nn.Linear(30, 30, bias=False)), OFF)
        weight = bio.get_parameter("0.weight")
        optimizer = torch.optim.SGD([weight], lr=0.5)
        rule = Rejuvenate(law="initial", choose="random", max_share=0.3, before_step=early)
        scheduler = GradScheduler(bio, optimizer, rules=[rule])
        before = weight.detach().clone()
        weight.grad = torch.full_like(weight, 0.25)
        optimizer.step()
        ends.append(weight.detach().clone())
        assert scheduler.metrics()["0.weight"]["turnover"] == pytest.approx(0.3, abs=0.06)
    early, late = ends
    stayed = torch.isclose(early, before - 0.125)
    assert torch.equal(stayed, torch.isclose(late, before - 0.125))  # the same draws
    torch.testing.assert_close(early[~stayed], late[~stayed] - 0.125)


def test_before_the_step_needs_the_optimizer() -> None:
    bio = biofx.transform(nn.Sequential(nn.Linear(3, 3)), OFF)
    with pytest.raises(biofx.PlasticityError, match="before_step=True needs the optimizer"):
        GradScheduler(bio, rules=[Rejuvenate(before_step=True)])


def test_before_the_step_under_a_closure() -> None:
    ends = []
    for closed in (False, True):
        torch.manual_seed(0)
        bio = biofx.transform(nn.Sequential(nn.Linear(8, 8)), biofx.BioConfig())
        optimizer = torch.optim.AdamW(bio.parameters(), lr=0.01)
        rules = [Rejuvenate(d=3, before_step=True), biofx.plasticity.FuzzyLearningRates(nu=0.4)]
        GradScheduler(bio, optimizer, rules=rules)
        x = torch.randn(4, 8)

        def loss(bio: Any = bio, optimizer: Any = optimizer, x: Any = x) -> Any:
            optimizer.zero_grad()
            value = bio(x).square().mean()
            value.backward()
            return value

        for _ in range(4):
            if closed:
                optimizer.step(loss)
            else:
                loss()
                optimizer.step()
        ends.append(bio.get_parameter("0.weight").detach())
    assert torch.equal(*ends)


def test_restore_pulls_to_the_start() -> None:
    torch.manual_seed(0)
    bio = biofx.transform(nn.Sequential(nn.Linear(5, 4)), OFF)
    weight = bio.get_parameter("0.weight")
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.1)
    scheduler = GradScheduler(bio, optimizer, rules=[Restore(strength=0.25)])
    start = weight.detach().clone()
    expected = start.clone()
    for step in range(5):
        gradient = torch.full_like(weight, 1.0 + step)
        weight.grad = gradient
        optimizer.step()
        expected = expected - 0.1 * gradient
        expected = expected + 0.25 * (start - expected)
        torch.testing.assert_close(weight.detach(), expected)
    away = float((weight.detach() - start).square().mean().sqrt())
    assert scheduler.metrics()["0.weight"]["distance"] == pytest.approx(away, rel=1e-4)


@pytest.mark.parametrize("strength", [0.0, 1.5, float("nan"), "1"])
def test_restore_refuses(strength: Any) -> None:
    bio = biofx.transform(nn.Sequential(nn.Linear(5, 4)), OFF)
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.1)
    with pytest.raises(biofx.PlasticityError, match="Restore: strength="):
        GradScheduler(bio, optimizer, rules=[Restore(strength=strength)])


def test_the_papers_configuration() -> None:
    config = biofx.BioConfig.paper()
    assert config.fuzzy_learning_rate_factor_nu == 0.09
    assert config.rejuvenation_parameter_dre == 14
    assert (config.rejuvenate_every, config.rejuvenate_before_step) == (1, True)
    assert config.weight_splitting_Gamma == 2
    assert biofx.BioConfig.paper(weight_splitting_Gamma=0).weight_splitting_Gamma == 0
    with pytest.raises(biofx.ConfigError, match="did you mean"):
        biofx.BioConfig.paper(rejuvenate_evry=2)
    bio = biofx.transform(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), config)
    optimizer = torch.optim.SGD(bio.parameters(), lr=1e-3)
    scheduler = GradScheduler(bio, optimizer)
    bio(torch.randn(4, 6)).square().mean().backward()
    optimizer.step()
    assert scheduler.metrics()["0.weight"]["turnover"] > 0


def test_a_schedule_holds_for_replacing_before_the_step() -> None:
    bio = biofx.transform(nn.Sequential(nn.Linear(20, 20)), OFF)
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.0)
    rule = Rejuvenate(d=1, before_step=True, schedule=Schedule(every=2, stop=4))
    GradScheduler(bio, optimizer, rules=[rule])
    weight = bio.get_parameter("0.weight")
    changed = []
    for _ in range(6):
        before = weight.detach().clone()
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        changed.append(not torch.equal(before, weight))
    assert changed == [False, True, False, True, False, False]


class Sentences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(30, 8, padding_idx=2), nn.Linear(8, 2)

    def forward(self, words: Tensor) -> Tensor:
        return self.out(self.words(words).sum(1))


@pytest.mark.parametrize(
    "config",
    [
        {"rejuvenate_every": 2},
        {"rejuvenate_every": 2, "rejuvenate_choose": "weak", "rejuvenate_max_share": 0.1},
        {"rejuvenate_every": 2, "rejuvenate_law": "initial", "rejuvenate_before_step": True},
        {"unit_turnover_every": 1, "unit_turnover_rate": 0.5, "unit_turnover_maturity": 1},
        {"restore_strength": 0.1},
    ],
    ids=["paper", "weak", "before the step", "turnover", "restore"],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_row_of_padding_stays_as_it_is(config: dict[str, Any], compiled: bool) -> None:
    torch.manual_seed(0)
    words = torch.randint(30, (6, 5))
    bio = biofx.transform(Sentences(), biofx.BioConfig(**config), example_inputs=words)
    bio.words.weight.data[2] = torch.arange(8.0)  # of a user's own
    before = bio.words.weight.detach().clone()
    optimizer = torch.optim.Adam(bio.parameters(), lr=0.01)
    GradScheduler(bio, optimizer, compile=compiled)
    for _ in range(4):
        optimizer.zero_grad()
        bio(words).square().mean().backward()
        optimizer.step()
    assert torch.equal(bio.words.weight[2], before[2])
    assert not torch.equal(bio.words.weight, before)


@pytest.mark.parametrize(
    "rule",
    [
        Rejuvenate(choose="weak", law="initial", max_share=0.04),
        Rejuvenate(d=20.0, max_share=0.04),
        Rejuvenate(choose="weak", before_step=True, max_share=0.04),
    ],
    ids=["weak", "paper", "before the step"],
)
def test_the_row_of_padding_takes_no_part_of_the_share(rule: Rejuvenate) -> None:
    torch.manual_seed(0)
    bio = biofx.transform(nn.Sequential(nn.Embedding(25, 40, padding_idx=0)), OFF)
    weight = bio.get_parameter("0.weight")
    optimizer = torch.optim.SGD([weight], lr=0.0)
    GradScheduler(bio, optimizer, rules=[rule])
    replaced, start = 0, weight.detach().clone()
    for _ in range(50):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        replaced += int((weight != start).sum())
        weight.data.copy_(start)
    assert replaced / 50 == pytest.approx(40, rel=0.1)


class Guesses(Sentences):
    """The next word: what is the row of padding for one layer is a unit of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 30)
        self.out.weight = self.words.weight


def test_a_row_that_another_layer_trains_is_no_padding() -> None:
    torch.manual_seed(0)
    words = torch.randint(3, 30, (6, 5))
    bio = biofx.transform(Guesses(), example_inputs=words)
    before = bio.words.weight.detach().clone()
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.0)
    GradScheduler(bio, optimizer, rules=[Rejuvenate(choose="random", max_share=0.9)])
    nn.functional.cross_entropy(bio(words), words[:, 0]).backward()
    optimizer.step()
    assert (bio.words.weight[2] != before[2]).any()


def test_new_synapses_of_an_embedding_have_no_sparse_momentum() -> None:
    torch.manual_seed(0)
    bio = biofx.transform(nn.Embedding(20, 8, sparse=True))
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.0, momentum=0.9)
    rule = Rejuvenate(choose="random", max_share=0.5, schedule=Schedule(every=3))
    GradScheduler(bio, optimizer, rules=[rule])
    for words in (torch.tensor([0, 1, 1, 5]), torch.tensor([5, 7]), torch.arange(6)):
        optimizer.zero_grad()
        bio(words).square().sum().backward()
        before = bio.weight.detach().clone()
        optimizer.step()
    momentum = optimizer.state[bio.weight]["momentum_buffer"].to_dense()
    new = bio.weight.detach() != before
    assert new[:6].any()
    assert not momentum[new].any()
    assert momentum[:6][~new[:6]].all()
