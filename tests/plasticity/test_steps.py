"""What is a step of the optimizer and what is not, and who sees the weights after it."""

import copy
import gc
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.optim import PostLocalSGDOptimizer

import biofx
from biofx.plasticity import (
    Context,
    Crystallize,
    Expression,
    FuzzyLearningRates,
    GradScheduler,
    Rejuvenate,
    Rule,
    Schedule,
    VolumeDependentRates,
)
from biofx.plasticity.scheduler import arenas, binding

from .optimizers import Own
from .table import batches, make, same, train

EVERYTHING = {"crystallize_every": 1, "rejuvenate_every": 1}


def backward(model: nn.Module) -> None:
    ((x, y),) = batches(1)
    nn.functional.mse_loss(model(x), y).backward()


def loss_of(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    return closure


def detaching(closure: Callable[[], Tensor], scheduler: GradScheduler) -> Callable[[], Tensor]:
    def detached() -> Tensor:
        loss = closure()
        scheduler.detach()
        return loss

    return detached


MAKERS: list[Any] = [
    lambda p: optim.AdamW(p),
    lambda p: optim.SGD(p, lr=0.1),
    lambda p: optim.SGD(p, lr=torch.tensor(0.1), momentum=0.9),
]


@pytest.mark.parametrize("make_optimizer", MAKERS)
def test_distributed_checkpoints_initialise_optimizers_with_a_step_that_is_none(
    make_optimizer: Any,
) -> None:
    bio, plain = make(EVERYTHING), make(EVERYTHING)
    optimizer = make_optimizer(bio.parameters())
    scheduler = GradScheduler(bio, optimizer)
    get_state_dict(bio, optimizer)
    assert scheduler.steps == [0]
    assert same(bio, plain)
    assert all(numbers["crystallized"] == 0 for numbers in scheduler.metrics().values())
    train(bio, optimizer, batches(2))
    assert scheduler.steps == [2]
    # And when it is loaded into another one.
    again = make(EVERYTHING)
    other = make_optimizer(again.parameters())
    resumed = GradScheduler(again, other)
    model_state, optimizer_state = copy.deepcopy(get_state_dict(bio, optimizer))
    set_state_dict(again, other, model_state_dict=model_state, optim_state_dict=optimizer_state)
    resumed.load_state_dict(scheduler.state_dict())
    assert resumed.steps == [2]
    assert same(again, bio)
    for model, one in ((bio, optimizer), (again, other)):
        train(model, one, batches(2))
    assert same(again, bio)


def test_a_learning_rate_of_zero_is_a_step() -> None:
    """A warm-up may begin there."""
    bio = make({"rejuvenate_every": 1})
    optimizer = optim.AdamW(bio.parameters(), lr=0.0)
    scheduler = GradScheduler(bio, optimizer)
    backward(bio)
    optimizer.step()
    assert scheduler.steps == [1]


@pytest.mark.parametrize("early", [True, False], ids=["before", "after"])
def test_whoever_looks_after_a_step_sees_the_weights_of_the_model(early: bool) -> None:
    """A mask has the last word, and a mean is that of the weights: whoever came first."""
    bio = make({"rejuvenate_every": 1})
    weight = bio.get_parameter("fc.weight")
    mask = torch.rand_like(weight) > 0.5
    seen = []

    def keep(*_: Any) -> None:
        seen.append(bio.get_parameter("conv.weight").detach().clone())
        with torch.no_grad():
            weight.mul_(mask)

    optimizer = optim.AdamW(bio.parameters(), lr=0.01)
    if early:
        optimizer.register_step_post_hook(keep)
    GradScheduler(bio, optimizer)
    if not early:
        optimizer.register_step_post_hook(keep)
    for _ in range(3):
        backward(bio)
        optimizer.step()
        assert torch.equal(seen[-1], bio.get_parameter("conv.weight"))
        assert (weight[~mask] == 0).all()


class Moody(optim.SGD):
    """Raises now and then: out of memory, a lost device, Ctrl+C."""

    error: BaseException | None = None

    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        if self.error is not None:
            raise self.error
        super().step()
        return loss


CONFIGS: dict[str, dict[str, Any]] = {
    "crystallize": {"fuzzy_lr_distribution": "baseline", "crystallize_every": 1},
    "renewed before": {
        "crystallize_every": 1,
        "rejuvenate_every": 1,
        "rejuvenate_choose": "weak",
        "rejuvenate_max_share": 0.1,
        "rejuvenate_before_step": True,
    },
    "everything": {**EVERYTHING, "fuzzy_lr_distribution": "weight_adaptive"},
    "activity": {
        "fuzzy_lr_distribution": "activity",
        "fuzzy_lr_dynamic": True,
        "fuzzy_lr_update_freq": 2,
    },
    "moving": {
        "fuzzy_lr_distribution": "weight_adaptive",
        "fuzzy_lr_dynamic": True,
        "fuzzy_lr_update_freq": 2,
    },
}
MODES: list[Any] = ["update", "gradient"]


@pytest.mark.parametrize("large", [False, True], ids=["", "large"])
@pytest.mark.parametrize("closure", [False, True], ids=["", "closure"])
@pytest.mark.parametrize("apply", MODES)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_step_that_raises_has_never_been(
    config: Any, apply: Any, closure: bool, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried again, everything is to the bit what it would have been without the failure."""
    if large:
        for module in (arenas, binding):
            monkeypatch.setattr(module, "SMALL", 0)
    ends, states = [], []
    for failures in (0, 3):
        bio = make(config)
        optimizer = Moody(bio.parameters(), lr=0.05)
        scheduler = GradScheduler(bio, optimizer, apply=apply)
        for number, (x, y) in enumerate(batches(4)):
            loss = loss_of(bio, optimizer, x, y)
            for error in [KeyboardInterrupt(), RuntimeError(), MemoryError()][:failures]:
                before = {
                    key: {name: {f: torch.as_tensor(v).clone() for f, v in state.items()}}
                    for key, parameters in scheduler.state_dict()["state"].items()
                    for name, state in parameters.items()
                }
                optimizer.error = error
                bio.eval()  # units that were active in vain would count twice
                if not closure:
                    loss()
                with pytest.raises(type(error)):
                    optimizer.step(loss if closure else None)
                bio.train()
                optimizer.error = None
                assert scheduler.steps == [number]
                after = scheduler.state_dict()["state"]
                for key, parameters in before.items():
                    for name, state in parameters.items():
                        for field, value in state.items():
                            assert torch.equal(torch.as_tensor(after[key][name][field]), value)
            if not closure:
                loss()
            optimizer.step(loss if closure else None)
        assert scheduler.steps == [4]
        ends.append(bio)
        states.append(scheduler.state_dict()["state"])
    assert same(*ends)


@pytest.mark.parametrize("apply", ["update", "gradient"])
@pytest.mark.parametrize("layers", [1, 2], ids=["alone", "together"])
def test_metrics_are_those_of_the_last_step_that_was_taken(apply: Any, layers: int) -> None:
    torch.manual_seed(0)
    bio = biofx.transform(nn.ModuleList([nn.Linear(6, 5, bias=False) for _ in range(layers)]))
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.1, momentum=0.5)
    rules: list[Rule] = [
        VolumeDependentRates(schedule=Schedule(every=2)),
        Crystallize(threshold=1.0),
        Rejuvenate(choose="random", max_share=0.3, before_step=True, only="0.*"),
    ]
    scheduler = GradScheduler(bio, optimizer, rules=rules, apply=apply)

    def raising(*args: Any) -> None:
        raise MemoryError

    for step in range(3):
        for parameter in bio.parameters():
            parameter.grad = torch.randn_like(parameter)
        seen = repr(scheduler.metrics()), scheduler.factors("0.weight")
        handle = optimizer.register_step_pre_hook(raising)
        with pytest.raises(MemoryError):
            optimizer.step()
        handle.remove()
        for look in range(2):
            assert torch.equal(scheduler.factors("0.weight"), seen[1]), (step, look)
            assert repr(scheduler.metrics()) == seen[0], (step, look)
        optimizer.step()


def test_a_rule_that_raises_leaves_the_others_as_they_were() -> None:
    class Late(Rule):
        def factor(self, context: Context) -> Tensor:
            if context.step == 2 and context.synapses.parameter == "fc.weight":
                raise RuntimeError("out of memory")
            return torch.ones(())

    bio = make()
    optimizer = optim.RMSprop(bio.parameters())
    scheduler = GradScheduler(bio, optimizer, rules=[Crystallize(threshold=1e9), Late()])
    train(bio, optimizer, batches(1))
    with pytest.raises(RuntimeError, match="out of memory"):
        train(bio, optimizer, batches(1))
    for state in scheduler.state_dict()["state"]["Crystallize"].values():
        assert state["factors"].min() == pytest.approx(0.6)  # once


def test_detaching_in_a_closure() -> None:
    """The step goes on as a plain one."""
    for cls in (optim.SGD, optim.LBFGS):
        bio, plain = make(EVERYTHING), make(EVERYTHING)
        optimizer, other = cls(bio.parameters(), lr=0.1), cls(plain.parameters(), lr=0.1)
        scheduler = GradScheduler(bio, optimizer)
        for model, one in ((bio, optimizer), (plain, other)):
            loss = loss_of(model, one, *batches(1)[0])
            one.step(loss if model is plain else detaching(loss, scheduler))  # type: ignore[arg-type]
        assert same(bio, plain)


class Fused(Own):
    """Updates while the backward pass is under way, as LOMO does."""

    def __init__(self, params: Any) -> None:
        params = list(params)
        super().__init__(params, lr=0.01)
        for parameter in params:
            parameter.register_post_accumulate_grad_hook(self.update)

    @torch.no_grad()
    def update(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.sub_(parameter.grad, alpha=0.01)
        parameter.grad = None


def test_steps_that_are_never_seen() -> None:
    for kind in ("fused", "replaced", "other"):
        bio = make()
        optimizer: Any = (
            Fused(bio.parameters()) if kind == "fused" else optim.SGD(bio.parameters(), lr=0.1)
        )
        scheduler = GradScheduler(bio, optimizer)
        mover = optim.SGD(bio.parameters(), lr=0.1)
        if kind == "replaced":
            optimizer.step = mover.step
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(8):
                if kind != "fused":
                    mover.zero_grad()
                backward(bio)
                if kind == "replaced":
                    optimizer.step()
                elif kind == "other":
                    mover.step()
        (warning,) = said  # once
        assert f"{type(optimizer).__name__}.step was never called" in str(warning.message)
        assert scheduler.steps == [0]


def test_gradients_that_are_never_seen() -> None:
    """Those of torch.func reach no parameter, so that nothing is scaled without an optimizer."""
    bio = make()
    scheduler = GradScheduler(bio)
    weights = {name: parameter.detach() for name, parameter in bio.named_parameters()}

    def loss(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(bio, values, (batches(1)[0][0],)).square().mean()

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(5):
            for name, gradient in torch.func.grad(loss)(weights).items():
                weights[name] -= 0.1 * gradient
            scheduler.step()
    (warning,) = said
    assert "no gradient has come to any weight" in str(warning.message)
    assert warning.filename == __file__
    scheduler.detach()
    resting = GradScheduler(bio.requires_grad_(False))
    for _ in range(5):
        resting.step()  # as expected, while all is frozen


def test_nothing_is_said_of_gradients_that_lead_to_no_step() -> None:
    """Accumulation, a skipped step, a model that is only looked at."""
    bio = make()
    optimizer = optim.SGD(bio.parameters(), lr=0.1)
    scheduler = GradScheduler(bio, optimizer)
    for _ in range(5):
        backward(bio)
    optimizer.zero_grad()
    backward(bio)
    optimizer.step()
    assert scheduler.steps == [1]
    for parameter in bio.parameters():
        assert not parameter._post_accumulate_grad_hooks  # type: ignore[attr-defined]


def test_the_watch_keeps_nothing_alive() -> None:
    bio = make()
    optimizer = optim.SGD(bio.parameters(), lr=0.1)
    scheduler = GradScheduler(bio, optimizer)
    gone = weakref.ref(scheduler)
    del scheduler, optimizer
    gc.collect()
    assert gone() is None
    backward(bio)


def test_an_optimizer_without_synapses_beside_others() -> None:
    """Muon takes the matrices, AdamW what is no matrix."""
    bio, plain = make(), make()
    for model in (bio, plain):
        matrices = [p for p in model.parameters() if p.dim() == 2]
        rest = [p for p in model.parameters() if p.dim() == 1]
        both: Any = [optim.Muon(matrices, lr=0.01), optim.AdamW(rest, lr=0.01)]
        if model is bio:
            one = [FuzzyLearningRates(nu=1e-30)]
            scheduler = GradScheduler(model, both, rules=one)
        for x, y in batches(3):
            model.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            for optimizer in both:
                optimizer.step()
    assert scheduler.steps == [3, 3]
    assert same(bio, plain)
    loose = [nn.Parameter(torch.ones(2))]
    with pytest.raises(biofx.PlasticityError, match=r"SGD, AdamW\) shares no weight"):
        GradScheduler(bio, [optim.SGD(loose), optim.AdamW(loose)])


def test_a_wrapper_that_averages_over_processes() -> None:
    class Averager:
        step = 0

        def average_parameters(self, params: Any) -> None:
            self.step += 1

    bio, other = make(), make()
    inner = optim.SGD(bio.parameters(), lr=0.1, momentum=0.9)
    optimizer = PostLocalSGDOptimizer(inner, Averager())  # type: ignore[arg-type]
    scheduler = GradScheduler(bio, optimizer)
    train(bio, optimizer, batches(3))
    assert scheduler.steps == [3]
    plain = optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    GradScheduler(other, plain)
    train(other, plain, batches(3))
    assert same(bio, other)


def test_two_threads_in_one_optimizer() -> None:
    """A second step in the middle of another one is refused; the first one is taken."""
    bio = make()
    inside, go_on = threading.Event(), threading.Event()

    class Waiting(optim.SGD):
        def step(self, closure: Any = None) -> Any:
            if threading.current_thread() is not threading.main_thread():
                inside.set()
                assert go_on.wait(30)
            return super().step(closure)

    optimizer = Waiting(bio.parameters(), lr=0.1)
    scheduler = GradScheduler(bio, optimizer, rules=[Crystallize()])
    backward(bio)
    other = threading.Thread(target=optimizer.step)
    other.start()
    assert inside.wait(30)
    with pytest.raises(biofx.PlasticityError, match="two threads"):
        optimizer.step()
    scheduler.state_dict()  # looking is allowed, and undoes nothing
    go_on.set()
    other.join()
    assert scheduler.steps == [1]
    optimizer.step()
    assert scheduler.steps == [2]


def test_a_setting_called_k_is_no_number_of_steps() -> None:
    class Inner(optim.SGD):
        def __init__(self, params: Any, lr: float, k: int) -> None:
            super().__init__(params, lr)
            self.defaults["k"] = k
            for group in self.param_groups:
                group["k"] = k

    bio = make()
    optimizer = Inner(bio.parameters(), lr=0.1, k=6)
    GradScheduler(bio, optimizer)
    train(bio, optimizer, batches(1))  # warnings are errors


def test_resuming_without_the_schedulers_state() -> None:
    bio = make()
    optimizer = optim.AdamW(bio.parameters())
    train(bio, optimizer, batches(3))
    scheduler = GradScheduler(bio, optimizer)
    with pytest.warns(UserWarning, match="AdamW has taken 3 steps, but its GradScheduler none"):
        train(bio, optimizer, batches(1))
    state = scheduler.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(bio, optimizer, batches(1))
        # With its state, all is well; and a second scheduler follows on a first one.
        again = make()
        other = optim.AdamW(again.parameters())
        resumed = GradScheduler(again, other)
        other.load_state_dict(optimizer.state_dict())
        resumed.load_state_dict(state)
        train(again, other, batches(1))
        scheduler.detach()
        GradScheduler(bio, optimizer)
        train(bio, optimizer, batches(1))


def test_an_optimizers_moments_are_put_back_with_the_weights() -> None:
    """Synapses were replaced before a step that raised."""
    ends = []
    for fails in (False, True):
        torch.manual_seed(0)
        bio = biofx.transform(nn.Linear(20, 10))
        optimizer = optim.Adam(bio.parameters(), lr=0.01)
        rule = Rejuvenate(choose="weak", max_share=0.2, before_step=True)
        GradScheduler(bio, optimizer, rules=[rule])
        for step in range(4):
            torch.manual_seed(step)
            optimizer.zero_grad()
            bio(torch.randn(8, 20)).square().mean().backward()
            if fails and step == 2:
                handle = optimizer.register_step_pre_hook(fail)
                with pytest.raises(MemoryError):
                    optimizer.step()
                handle.remove()
            optimizer.step()
        ends.append(bio)
    assert same(*ends)


def fail(*_: Any) -> None:
    raise MemoryError


class Two(Rule):
    """Two tensors of state, each changed by a call of its own that sees what the other has left."""

    observes_with_factors = True

    def prepare(self, context: Context) -> None:
        for name in ("first", "second"):
            context.state[name] = torch.ones_like(context.weight)

    def observe(self, context: Context) -> None:
        first, second = context.state["first"], context.state["second"]
        for own, other in ((first, second), (second, first), (first, second)):
            context.map(
                _added, {"own": own}, writes=("own",), inputs={"other": other}, with_factors=True
            )

    def expression(self, context: Context) -> Expression:
        return Expression(_read, {"first": context.state["first"]})


def _added(index: Tensor, tensors: Any, inputs: Any) -> tuple[Tensor]:
    return (tensors["own"] + inputs["other"],)


def _read(weight: Tensor, index: Tensor, *, first: Tensor) -> Tensor:
    return first * 0.01


@pytest.mark.parametrize("compile", [False, True])
def test_states_that_are_read_from_one_memory_and_written_to_another(
    compile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, states = [], []
    for large in (False, True):
        monkeypatch.setattr(binding, "SMALL", 0 if large else 2**17)
        monkeypatch.setattr(arenas, "SMALL", 0)
        bio = make()
        optimizer = Moody(bio.parameters(), lr=0.05)
        scheduler = GradScheduler(bio, optimizer, rules=[Two()], apply="gradient", compile=compile)
        train(bio, optimizer, batches(1))
        kept = scheduler.state_dict()["state"]["Two"]
        for _ in range(3):
            train(bio, optimizer, batches(1))
            optimizer.error = RuntimeError()
            with pytest.raises(RuntimeError):
                train(bio, optimizer, batches(1))
            optimizer.error = None
        ends.append(bio)
        now = scheduler.state_dict()["state"]["Two"]
        # As an optimizer's, the dict shares its tensors with the run.
        assert all(torch.equal(kept[name]["first"], now[name]["first"]) for name in now)
        states.append(now["conv.weight"])
    assert same(*ends)
    assert all(torch.equal(states[0][name], states[1][name]) for name in ("first", "second"))
