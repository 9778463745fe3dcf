"""What passes over memory do, whoever asks for them; and what outlives a step."""

import gc
import weakref
from typing import Any

import torch
from torch import Tensor, nn

import biofx
from biofx.plasticity import Context, Crystallize, FuzzyLearningRates, GradScheduler, Rule
from biofx.plasticity.kernels.base import KernelCall, Kernels, Tensors, joined
from biofx.plasticity.kernels.layout import offset
from biofx.plasticity.numerics.shards import Shard

CPU = torch.device("cpu")
SHARD = Shard((2, 3), (2, 3), (0, 0))


def doubled(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor]:
    return (tensors["a"] * 2 + inputs["c"],)


def added(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor]:
    return (tensors["b"] + inputs["a"] + inputs["c"],)


def grown(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor]:
    return (tensors["c"] + 1,)


def summed(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor]:
    return (tensors["b"] + sum(inputs.values()),)


def counted(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor]:
    return (tensors["count"] + (tensors["grad"] > 0),)


class Count(Rule):
    """How often each synapse had a positive gradient; changes nothing else."""

    with_factors = True

    def prepare(self, context: Context) -> None:
        context.state["count"] = torch.zeros(context.weight.shape)

    def observe(self, context: Context) -> None:
        assert context.grad is not None
        tensors = {"count": context.state["count"], "grad": context.grad}
        context.map(counted, tensors, writes=("count",), with_factors=self.with_factors)


class Halve(Count):
    """Halves the updates of synapses that ever had a positive gradient: reads what it wrote."""

    with_factors = False

    def factor(self, context: Context) -> Tensor:
        return torch.where(context.state["count"] > 0, 0.5, 1.0)


class TestJoined:
    def test_the_second_sees_what_the_first_writes(self) -> None:
        a, b, one, two = torch.ones(2, 3), torch.zeros(2, 3), torch.tensor(1.0), torch.tensor(2.0)
        first = KernelCall.of(doubled, {"a": a}, ("a",), {"c": one})
        work = joined([first, KernelCall.of(added, {"b": b}, ("b",), {"a": a, "c": two})])
        self.do(work)
        assert torch.equal(a, torch.full((2, 3), 3.0))
        assert torch.equal(b, torch.full((2, 3), 5.0))

    def test_several_with_equal_names(self) -> None:
        """Tensors are told apart by what they are, not by what each function calls them."""
        works = [
            KernelCall.of(doubled, {"a": torch.ones(2, 3)}, ("a",), {"c": torch.tensor(c)})
            for c in (1.0, 2.0, 3.0)
        ]
        self.do(joined(works))
        for work, value in zip(works, (3.0, 4.0, 5.0), strict=True):
            assert torch.equal(work.target, torch.full((2, 3), value))

    def test_stores_in_the_type_that_there_is(self) -> None:
        a, b = torch.ones(2, 3, dtype=torch.bfloat16), torch.zeros(2, 3)
        first = KernelCall.of(doubled, {"a": a}, ("a",), {"c": torch.tensor(2.0**-9)})
        inputs = {"a": a, "c": torch.tensor(0.0)}
        self.do(joined([first, KernelCall.of(added, {"b": b}, ("b",), inputs)]))
        assert torch.equal(b, a.float())

    def test_has_one_identity(self) -> None:
        """Or else each step would compile a kernel."""
        made = {
            joined(
                [
                    KernelCall.of(doubled, {"a": a}, ("a",), {"c": torch.ones(())}),
                    KernelCall.of(
                        added, {"b": torch.ones(2, 3)}, ("b",), {"a": a, "c": torch.ones(())}
                    ),
                ]
            ).spec
            for a in torch.ones(3, 2, 3)
        }
        assert len(made) == 1

    def test_a_tensor_and_an_input_of_one_name(self) -> None:
        c, a, b = torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2, 3)
        last = KernelCall.of(added, {"b": b}, ("b",), {"a": a, "c": torch.tensor(0.0)})
        middle = KernelCall.of(doubled, {"a": a}, ("a",), {"c": torch.tensor(5.0)})
        self.do(joined([KernelCall.of(grown, {"c": c}, ("c",), {}), middle, last]))
        assert torch.equal(c, torch.full((2, 3), 2.0))
        assert torch.equal(a, torch.full((2, 3), 7.0))
        assert torch.equal(b, torch.full((2, 3), 7.0))

    def test_the_second_sees_no_more_inputs_than_its_own(self) -> None:
        """A rule may go over all of them."""
        a, b = torch.ones(2, 3), torch.zeros(2, 3)
        first = KernelCall.of(doubled, {"a": a}, ("a",), {"c": torch.tensor(5.0)})
        second = KernelCall.of(summed, {"b": b}, ("b",), {"c": torch.tensor(2.0)})
        self.do(joined([first, second]))
        assert torch.equal(b, torch.full((2, 3), 2.0))

    def do(self, work: KernelCall) -> None:
        Kernels().do(work, shard=SHARD)


def step(rules: list[Rule], apply: Any) -> tuple[nn.Module, GradScheduler]:
    torch.manual_seed(0)
    model = biofx.transform(nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = GradScheduler(model, optimizer, rules=rules, apply=apply, compile=False)
    for sign in (1.0, 1.0, -1.0):
        model.weight.grad = torch.full((2, 3), sign)
        optimizer.step()
    return model, scheduler


class TestLeftForLater:
    def test_is_done_without_factors_too(self) -> None:
        for apply in ("gradient", "update"):
            _, scheduler = step([Count()], apply)
            states = scheduler.state_dict()["state"]
            counts = [t for t in torch.utils._pytree.tree_leaves(states) if isinstance(t, Tensor)]
            assert len(counts) == 1
            assert torch.equal(counts[0], torch.full((2, 3), 2.0))

    def test_is_what_it_would_be_at_once(self) -> None:
        """Under plain SGD, scaling gradients and scaling updates is the same."""
        rules: list[Rule] = [Crystallize(threshold=0.1), FuzzyLearningRates(nu=0.3), Count()]
        for (_, a), (_, b) in zip(
            step(rules, "gradient")[0].named_parameters(),
            step(rules, "update")[0].named_parameters(),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_factor_reads_what_the_rule_has_just_written() -> None:
    for (_, a), (_, b) in zip(
        step([Halve()], "gradient")[0].named_parameters(),
        step([Halve()], "update")[0].named_parameters(),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_no_cache_keeps_a_process_group() -> None:
    """Its threads would live until the interpreter ends, and may abort it."""

    class Group:
        pass

    group = Group()
    gone = weakref.ref(group)
    shard = Shard((4, 3), (2, 3), (2, 0), (group,))  # type: ignore[arg-type]
    assert int(offset(shard, CPU)) == 6
    del group, shard
    gc.collect()
    assert gone() is None
