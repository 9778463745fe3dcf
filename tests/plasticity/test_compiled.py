"""Compiled kernels compute what the functions say, in one pass each, for any size."""

import inspect
import math
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache, run_and_get_code

import biofx
from biofx.plasticity import (
    Crystallize,
    DalesPrinciple,
    FuzzyLearningRates,
    GradScheduler,
    Rejuvenate,
    Rule,
    VolumeDependentRates,
)
from biofx.plasticity.kernels import compiled, tracing
from biofx.plasticity.kernels.arena import LENGTH, SMALL, Arena
from biofx.plasticity.kernels.base import KernelCall, Kernels, Tensors, count, kernel_spec
from biofx.plasticity.kernels.compiled import KERNELS, CompiledKernels, can_compile, kernels_for
from biofx.plasticity.numerics import random
from biofx.plasticity.numerics.polynomials import exp_near_zero
from biofx.plasticity.numerics.shards import Shard
from biofx.plasticity.rules.volume import volume_factors
from biofx.plasticity.scheduler import arenas

from .table import DALE

SIGNS = DalesPrinciple(initialisation="signs")
OLDER = """
import torch
from torch._inductor import cpu_vec_isa
from biofx.plasticity.kernels.compiled import CompiledKernels

weight, kernels = torch.randn(11, 13), CompiledKernels()
torch.testing.assert_close(kernels.sum_abs(weight), weight.double().abs().sum())
assert kernels.compiled
assert not any("512" in str(one) or "amx" in str(one) for one in cpu_vec_isa.valid_vec_isa_list())
assert "512" not in cpu_vec_isa.pick_vec_isa().build_arch_flags()
"""

ANOTHER = """
import sys
import torch
from biofx.plasticity.kernels.base import KernelCall, kernel_spec
from biofx.plasticity.kernels.compiled import CompiledKernels
from biofx.plasticity.numerics.shards import Shard

def doubled(index, tensors, inputs):
    return (tensors["weight"] * 2 + index,)

kernels = CompiledKernels()
weight = torch.arange(300.0 * 13).view(300, 13)
if sys.argv[1] == "1":
    weight = weight.t().contiguous().t()
expected = weight * 2 + torch.arange(weight.numel()).view(weight.shape)
spec = kernel_spec(doubled, ("weight",), (), ("weight",))
kernels.do(KernelCall(spec, (weight,)), shard=Shard((300, 13), (300, 13), (0, 0)))
assert torch.equal(weight, expected)
torch.testing.assert_close(kernels.sum_abs(weight), expected.double().abs().sum())
assert kernels.compiled
"""

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(not can_compile(CPU), reason="no C++ compiler")
compiles = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), needs_compiler]

# Rules, and where their factors act. Compiling a kernel takes seconds: few, that show much.
RULES: dict[str, tuple[str, list[Rule]]] = {
    "together": (
        "gradient",
        [
            FuzzyLearningRates(nu=0.4),
            VolumeDependentRates(base=0.9),
            Crystallize(threshold=0.3),
        ],
    ),
    "update": ("update", [FuzzyLearningRates(distribution="normal", nu=0.2)]),
    "rejuvenate": (
        "update",
        [Rejuvenate(d=4, law="lognormal"), DalesPrinciple(initialisation="signs")],
    ),
}


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Linear(width, 7)
        self.narrow = nn.Linear(7, 3)


class Odd(nn.Module):
    """Weights that are no matrix in memory: laid out by channels, a prime number of synapses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        self.prime = nn.Linear(1, 5)


def train(
    net: nn.Module, rules: list[Rule], *, compile: bool, apply: str = "gradient"
) -> dict[str, Tensor]:
    """Three steps on made-up gradients; the weights."""
    torch.manual_seed(1)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    net = biofx.transform(net)
    optimizer = (
        torch.optim.AdamW(net.parameters(), lr=1e-2)
        if apply == "update"
        else torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    )
    GradScheduler(net, optimizer, rules=rules, seed=4, apply=apply, compile=compile)  # type: ignore[arg-type]
    for _ in range(3):
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape).to(parameter) * 0.1
        optimizer.step()
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-6)


class TestAgainstEager:
    pytestmark = compiles

    @pytest.mark.parametrize("name", RULES)
    def test_same_weights_and_other_sizes_are_not_compiled_again(self, name: str) -> None:
        apply, rules = RULES[name]
        made = 0
        for width in (70, 131):
            ours = train(Net(width), rules, compile=True, apply=apply)
            assert_close(ours, train(Net(width), rules, compile=False, apply=apply))
            assert made in (0, len(KERNELS))
            made = len(KERNELS)

    @pytest.mark.parametrize("net", [Odd, lambda: Net(70).bfloat16()], ids=["odd", "bfloat16"])
    def test_any_weight(self, net: Callable[[], nn.Module]) -> None:
        """Of sums and products, the same to the bit."""
        ours, theirs = (
            train(net(), [FuzzyLearningRates(nu=0.4)], compile=c) for c in (True, False)
        )
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def run_alone(code: str, cache: Path, *arguments: str, **environment: str) -> None:
    """Run code in a process of its own, where a compiler that fails is an error."""
    settings = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), **environment}
    filters = "error:plasticity kernels:RuntimeWarning"
    command = [sys.executable, "-W", filters, "-c", code, *arguments]
    subprocess.run(command, env=settings, check=True)


class TestKernels:
    pytestmark = compiles

    def test_exp_is_that_of_torch_at_its_ends(self) -> None:
        infinity = float("inf")
        x = torch.tensor([[-infinity, -200.0, -1.0, 0.0], [1.0, 80.0, infinity, float("nan")]])
        out, shard = torch.zeros(2, 4), Shard((2, 4), (2, 4), (0, 0))
        CompiledKernels().map(raised, {"out": out, "x": x}, writes=("out",), shard=shard)
        torch.testing.assert_close(out, x.exp(), rtol=2e-7, atol=0, equal_nan=True)

    @pytest.mark.parametrize("split", [0, 1])
    def test_shards_draw_what_the_whole_does(self, split: int) -> None:
        shape, key = (12, 130), random.key_tensor(random.stream_key(1, 2, "w"))
        kernels, inputs = CompiledKernels(), {"key": key}
        whole = torch.zeros(shape)
        kernels.map(
            noise, {"out": whole}, writes=("out",), shard=Shard(shape, shape, (0, 0)), inputs=inputs
        )
        size = [6, 130] if split == 0 else [12, 65]
        for place in (0, 1):
            offsets = [0, 0]
            offsets[split] = place * size[split]
            part = torch.zeros(size)
            shard = Shard(shape, tuple(size), tuple(offsets))
            kernels.map(noise, {"out": part}, writes=("out",), shard=shard, inputs=inputs)
            torch.testing.assert_close(part, shard.part(whole), rtol=0, atol=1e-6)

    def test_calls_leave_nothing_in_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Settings are patched when a kernel is made; each patch that is made stays."""
        bio = biofx.transform(Odd(), biofx.BioConfig(**DALE))
        optimizer = torch.optim.SGD(bio.parameters(), lr=0.1)
        GradScheduler(bio, optimizer, compile=True)

        def step() -> None:
            for parameter in bio.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()

        step()
        made = []
        config = type(torch.fx.experimental._config)
        plain = config.patch

        def patch(*args: Any, **changes: Any) -> Any:
            made.append(changes)
            return plain(*args, **changes)

        monkeypatch.setattr(config, "patch", patch)
        step()
        assert made == []

    def test_sum_and_fill(self) -> None:
        kernels, plain = CompiledKernels(), Kernels()
        weight = torch.randn(37, 11)
        torch.testing.assert_close(kernels.sum_abs(weight), plain.sum_abs(weight))
        mask, shard = weight > 0.5, Shard((37, 11), (37, 11), (0, 0))
        targets = [weight.clone(), torch.ones(37, 11)]
        kernels.fill(targets, mask, 2.0, shard=shard)
        for target, original in zip(targets, (weight, torch.ones(37, 11)), strict=True):
            assert torch.equal(target, original.masked_fill(mask, 2.0))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("values", [[-3.0, 2.0], [-0.0, 0.0], [1.0, float("inf")]])
    def test_max_abs(self, values: list[float], dtype: torch.dtype) -> None:
        for size in (2, 37):
            weight = torch.tensor(values, dtype=dtype).repeat(size)
            assert float(Kernels().max_abs(weight)) == max(map(abs, values))
            weight[size] = float("nan")
            assert math.isnan(Kernels().max_abs(weight))

    @pytest.mark.parametrize("value", [-3.0, math.inf, -math.inf, math.nan, 1e-40, -math.nan])
    def test_max_abs_of_many(self, value: float) -> None:
        weight = torch.rand(SMALL + 3) * (1e-41 if value == 1e-40 else 1)
        weight[1234] = value
        found = CompiledKernels().max_abs(weight)
        assert found.dtype == torch.float32
        assert found.shape == ()
        assert torch.equal(found.isnan(), torch.tensor(math.isnan(value)))
        assert math.isnan(value) or float(found) == float(weight.abs().amax())

    def test_max_abs_of_few_or_wide_weights(self) -> None:
        kernels = Kernels()
        assert float(kernels.max_abs(torch.zeros(0, 3))) == 0
        assert float(kernels.max_abs(torch.tensor([-2.5]))) == 2.5
        wide = torch.tensor([1 + 1e-12, -1.0], dtype=torch.float64)
        assert float(kernels.max_abs(wide)) == 1 + 1e-12

    @pytest.mark.parametrize("size", [0, 1, 1000, 2**16, 2**16 + 1, 100_003, 2**18])
    def test_count(self, size: int) -> None:
        index = torch.arange(size + 8)
        for mask in (index % 3 == 0, index >= 0, index < 0):
            for part in (mask[:size], mask[3 : size + 3], mask[8:]):  # where memory may begin
                assert int(count(part)) == sum(part.tolist())
        if size > 2**16 and size % 2 == 0:
            columns = (index[:size] % 5 == 0).view(2, -1).t()
            assert int(count(columns)) == sum(columns.flatten().tolist())

    @pytest.mark.slow
    def test_a_compiler_that_does_not_know_the_newest_instructions(self, tmp_path: Path) -> None:
        """It is asked for them at once; as it fails, PyTorch finds out which ones it knows."""
        compiler = tmp_path / "older"
        compiler.write_text(
            '#!/bin/sh\ncase "$*" in *-mavx512*|*-mamx*) exit 1;; esac\nexec g++ "$@"\n'
        )
        compiler.chmod(0o755)
        run_alone(OLDER, tmp_path / "kernels", CXX=str(compiler))

    @pytest.mark.slow
    @pytest.mark.parametrize("columns", [False, True], ids=["rows", "blocks"])
    def test_what_another_processor_has_left_on_disk(self, columns: bool, tmp_path: Path) -> None:
        """Kernels for longer vectors than there are would leave out every other element."""
        for processor in ("avx512", "avx2", "default"):
            run_alone(ANOTHER, tmp_path, str(int(columns)), ATEN_CPU_CAPABILITY=processor)

    def test_rows_round_alike_wherever_they_are_cut(self) -> None:
        """The ends of lines too, which are code of their own; with products fused with sums."""
        shape, kernels = (5, 134), CompiledKernels()
        torch.manual_seed(0)
        weight = torch.randn(shape)
        values = {"base": 0.1, "stability": 2.0, "variability": 0.2}
        inputs = {name: torch.tensor(value) for name, value in values.items()}
        inputs["key"] = random.key_tensor(random.stream_key(1, 2, "w"))
        known = kernel_spec(volume, ("out", "weight"), tuple(inputs), ("out",), rounded=True)

        def factors(rows: slice) -> Tensor:
            part = weight[rows].clone()
            out = torch.empty_like(part)
            shard = Shard(shape, tuple(part.shape), (rows.start, 0))
            kernels.do(KernelCall(known, (out, part, *inputs.values())), shard=shard)
            return out

        whole = factors(slice(0, 5))
        assert kernels.compiled
        for cut in (1, 2, 4):
            parts = [factors(slice(0, cut)), factors(slice(cut, 5))]
            assert torch.equal(torch.cat(parts), whole)

    def test_calls_go_straight_to_the_code(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compiled, "KERNELS", {})
        CompiledKernels().sum_abs(torch.ones(5))
        (kernel,) = compiled.KERNELS.values()
        assert inspect.isroutine(kernel)
        assert kernel.__name__ == "call"  # of the code that was written

    def test_one_kernel_for_arenas_of_any_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is traced for one: functions that ask for the size must see that of each call."""
        monkeypatch.setattr(compiled, "KERNELS", {})
        kernels = CompiledKernels()
        spec = kernel_spec(counted_up, ("x",), (), ("x",))
        for lines in (3, 40, 7):
            arena = Arena([torch.Size([lines, LENGTH])], torch.device("cpu"))
            x = arena.empty(torch.float32)
            kernels.do(KernelCall(spec, (x,)), shard=arena)
            assert torch.equal(x, torch.full_like(x, lines + 1.0))
        assert kernels.compiled
        assert len(compiled.KERNELS) == 1

    def test_more_threads_than_when_it_was_compiled(self) -> None:
        code = """
            import torch
            from biofx.plasticity.kernels.compiled import CompiledKernels
            kernels, weight = CompiledKernels(), torch.ones(4096)
            for threads in (2, 1, 8):
                torch.set_num_threads(threads)
                assert float(kernels.sum_abs(weight)) == 4096
            assert kernels.compiled
        """
        run = subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)])
        assert run.returncode == 0

    @pytest.mark.parametrize("rule", [VolumeDependentRates(), Rejuvenate(law="lognormal")])
    def test_one_pass_without_a_temporary(
        self, rule: Rule, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Long functions too, which the compiler is inclined to cut in two."""
        monkeypatch.setattr(compiled, "KERNELS", {})
        model = biofx.transform(nn.Linear(70, 7, bias=False))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        GradScheduler(model, optimizer, rules=[rule], compile=True)
        model.weight.grad = torch.randn(7, 70)  # type: ignore[union-attr]
        with fresh_cache():
            _, codes = run_and_get_code(optimizer.step)
        (code,) = codes
        assert len(re.findall(r"for\(int64_t x0=", code)) <= 1
        assert not re.search(r"empty_strided_cpu\(\(\w", code)

    def test_one_pass_for_all_rules_and_small_parameters(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the compiler works out once must not become a loop of its own."""
        monkeypatch.setattr(compiled, "KERNELS", {})
        model = biofx.transform(nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10)))
        optimizer = torch.optim.AdamW(model.parameters())
        rules = [
            FuzzyLearningRates(), VolumeDependentRates(), Crystallize(),
            Rejuvenate(max_share=0.01), DalesPrinciple(),
        ]  # fmt: skip
        GradScheduler(model, optimizer, rules=rules, compile=True)

        def steps() -> None:
            for _ in range(3):
                for parameter in model.parameters():
                    parameter.grad = torch.randn_like(parameter)
                optimizer.step()

        with fresh_cache():
            _, codes = run_and_get_code(steps)
        assert len(codes) == 4  # factors, what would be lost, renewal, updates of the young
        loops = [code.count("#pragma omp for") for code in codes if "tmp_acc" not in code]
        assert loops == [1, 1, 1]

    def test_calls_per_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One pass judges gradients and applies the factors of all rules."""
        monkeypatch.setattr(arenas, "SMALL", 0)  # each parameter by itself
        _, rules = RULES["together"]
        train(Net(70), rules, compile=True)
        calls: list[str] = []
        for key, kernel in list(KERNELS.items()):

            def counted(arguments: list[Tensor], kernel: Any = kernel, key: Any = key) -> Any:
                calls.append(getattr(key[1], "function", key[1]).__name__)
                return kernel(arguments)

            monkeypatch.setitem(KERNELS, key, counted)
        train(Net(70), rules, compile=True)
        weights_and_steps = 2 * 3
        assert Counter(calls) == dict.fromkeys(["_sum_abs", "both"], weights_and_steps)


def raised(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor]:
    return (tensors["x"].exp(),)


def counted_up(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor]:
    x = tensors["x"]
    return (x + x.shape[0] + torch.ones(x.shape),)


def noise(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor]:
    return (random.normal(inputs["key"], index),)


def volume(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor]:
    noise = random.normal(inputs["key"], index)
    values = {name: inputs[name] for name in ("base", "stability", "variability")}
    return (volume_factors(tensors["weight"], noise, exp=exp_near_zero, **values),)


class TestWithoutCompiler:
    def test_failure_is_told_once_and_costs_nothing_else(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The step that fails has the compiled form's exponential: equal within rounding."""

        def broken(*arguments: Any, **options: Any) -> Any:
            raise RuntimeError("no such compiler")

        monkeypatch.setattr(compiled, "KERNELS", {})
        for module in (compiled, tracing):
            monkeypatch.setattr(module, "trace", broken)
        monkeypatch.setattr(torch, "compile", broken)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ours = train(Odd(), RULES["together"][1], compile=True)
        assert [str(w.message) for w in caught if "no such compiler" in str(w.message)]
        assert len(caught) == 1
        theirs = train(Odd(), RULES["together"][1], compile=False)
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-7)

    def test_automatically(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By steps alone: sooner for more synapses, and again after going back."""
        monkeypatch.setattr(compiled, "can_compile", lambda device: False)
        kernels = kernels_for("auto", 10**9, CPU)
        kernels.begin(10**9)
        assert not kernels.compiled
        assert not kernels_for(False, 10**9, CPU).compiled
        monkeypatch.setattr(compiled, "can_compile", lambda device: True)
        assert kernels_for(True, 1, CPU).compiled
        few, many = compiled.worthwhile(1000), compiled.worthwhile(10**6)
        assert few > many > 1
        kernels = kernels_for("auto", 1000, CPU)
        assert not kernels.compiled
        for step, expected in ((1, False), (few, False), (few + 1, True), (many, False)):
            kernels.begin(step)
            assert kernels.compiled == expected

    def test_going_back_to_before_it_was_compiled(self) -> None:
        """Steps that were taken uncompiled are so again, though kernels are there by then."""
        call = KernelCall.of(raised, {"x": torch.ones(4)}, ("x",))
        shard = Shard((4,), (4,), (0,))
        kernels = CompiledKernels(after=5)
        ready = shard.ready[call.spec] = Mock()
        kernels.begin(5)
        kernels.do(call, shard=shard)
        assert not ready.run.called
        kernels.begin(6)
        kernels.do(call, shard=shard)
        assert ready.run.called

    def test_one_line_where_there_is_no_terminal(self, capsys: pytest.CaptureFixture[str]) -> None:
        compiled._say_once.cache_clear()
        for _ in range(2):
            with compiled._status():
                pass
        assert capsys.readouterr().err == compiled.WHY + "\n"


@needs_compiler
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_parameters_and_shards_without_elements() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(24, 16), nn.Linear(16, 0)

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            return y.square().sum() + self.head(y).sum()

    bio = biofx.transform(Net(), biofx.BioConfig(crystallize_every=1, rejuvenate_every=1))
    for make_optimizer in (torch.optim.SGD, torch.optim.AdamW):
        optimizer = make_optimizer(bio.parameters(), lr=0.1)
        scheduler = GradScheduler(bio, optimizer, compile=True)
        bio(torch.ones(1, 24)).backward()
        optimizer.step()
        assert scheduler.steps == [1]
        scheduler.detach()
    shard = Shard((3, 8), (0, 8), (3, 0))
    CompiledKernels().map(_doubled, {"w": torch.zeros(0, 8)}, writes=("w",), shard=shard)


def _doubled(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor, ...]:
    return (tensors["w"] * 2,)


@needs_compiler
def test_no_kernel_is_given_a_subclass_of_tensors() -> None:
    """A kernel goes by the type of numbers; what looks like that type may hold other memory."""

    class Doubtful(Tensor):
        pass

    class Spy(CompiledKernels):
        def _call(self, key: Any, make: Any, arguments: tuple[Tensor, ...]) -> bool:
            assert all(type(argument) is Tensor for argument in arguments)
            return super()._call(key, make, arguments)

    kernels, shard = Spy(), Shard((8, 8), (8, 8), (0, 0))
    for weight in (torch.ones(8, 8), torch.ones(8, 8).as_subclass(Doubtful), torch.ones(8, 8)):
        kernels.map(_doubled, {"w": weight}, writes=("w",), shard=shard)
        assert (weight == 2).all()
        assert len(shard.ready) == 1


def test_threads_that_need_a_kernel_take_turns_at_compiling() -> None:
    """What one sets for the compiler would be the other's, and what it puts back too."""
    made: list[str] = []

    def make(arguments: tuple[Tensor, ...]) -> Callable[[list[Tensor]], None]:
        made.append("begun")
        time.sleep(0.05)
        made.append("done")
        return lambda parts: None

    def work() -> None:
        CompiledKernels()._call("turns", make, ())

    threads = [threading.Thread(target=work) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        KERNELS.pop("turns", None)
    assert made == ["begun", "done"]
