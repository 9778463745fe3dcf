"""What a forward does to something that outlives the call: refused before it takes effect.

A tracer that only looks at tensors would do it once, at capture, or leave it out of the graph.
"""

import random
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize, stateless
from torch.random import fork_rng as fork
from torch.utils.hooks import RemovableHandle

import biofx
from tests.architectures import Architecture, floats, seed
from tests.fidelity import assert_same, run


class Count:
    """A class whose attributes a forward may change."""

    calls = 0


class Model(nn.Module):
    """`a` is what a forward changes; with `branches`, tracing stops after the change."""

    calls = 0

    def __init__(self, branches: bool = False) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.rest = nn.ModuleList([nn.Linear(6, 6)])
        self.out = nn.Linear(6, 2)
        self.branches = branches
        self.notes: list[str] = []

    def go(self, x: torch.Tensor) -> torch.Tensor:
        """The part between a change and its end."""
        y = self.norm(self.a(x))
        if self.branches and y.sum() > 1e9:
            y = y * 0
        return y


def functional_call(self, x):
    y = torch.func.functional_call(self.a, {"weight": self.a.weight * 2}, (x,))
    return self.out(y + self.go(x))


def stateless_call(self, x):
    y = stateless.functional_call(self.a, {"weight": self.a.weight * 2}, (x,))
    return self.out(y + self.go(x))


def reparametrize(self, x):
    with stateless._reparametrize_module(self.a, {"weight": self.a.weight * 2}):
        return self.out(self.go(x))


def imported_inside(self, x):
    from torch.func import functional_call as call

    return self.out(call(self.a, {"weight": self.a.weight * 2}, (x,)) + self.go(x))


def swap_parameter(self, x):
    held = self.a._parameters
    weight = held["weight"]
    held["weight"] = weight * 2
    y = self.go(x)
    held["weight"] = weight
    return self.out(y)


def swap_buffer(self, x):
    mean = self.norm._buffers.pop("running_mean")
    self.norm._buffers.update(running_mean=torch.ones(6))
    y = self.norm.eval()(x)
    self.norm.train()
    self.norm._buffers["running_mean"] = mean
    return self.out(y + self.go(x))


def swap_module(self, x):
    a = self._modules["a"]
    self._modules["a"] = self.rest[0]
    y = self.go(x)
    self._modules["a"] = a
    return self.out(y)


def forward_hook(self, x):
    handle = self.a.register_forward_hook(lambda module, args, y: y * 3)
    y = self.go(x)
    handle.remove()
    return self.out(y)


def pre_hook(self, x):
    handle = self.a.register_forward_pre_hook(lambda module, args: (args[0] * 3,))
    y = self.go(x)
    handle.remove()
    return self.out(y)


def backward_hook(self, x):
    handle = self.a.register_full_backward_hook(lambda module, inner, outer: None)
    y = self.go(x)
    handle.remove()
    return self.out(y)


def hook_by_hand(self, x):
    self.a._forward_hooks[0] = lambda module, args, y: y * 3
    y = self.go(x)
    del self.a._forward_hooks[0]
    return self.out(y)


def hook_on_all(self, x):
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, y: y * 3)
    y = self.go(x)
    handle.remove()
    return self.out(y)


def freeze(self, x):
    self.a.requires_grad_(False)
    y = self.go(x)
    self.a.requires_grad_(True)
    return self.out(y)


class Freezes(Model):
    """Overrides what it changes with."""

    def requires_grad_(self, requires_grad: bool = True) -> "Freezes":
        super().requires_grad_(requires_grad)
        return self

    def forward(self, x):
        self.requires_grad_(False)
        y = self.go(x)
        self.requires_grad_(True)
        return self.out(y)


def freeze_by_class(self, x):
    nn.Module.requires_grad_(self.a, False)
    y = self.go(x)
    nn.Module.requires_grad_(self.a, True)
    return self.out(y)


def other_mode(self, x):
    training = self.training
    self.norm.train(False)
    y = self.go(x)
    self.norm.train(bool(training))
    return self.out(y)


def other_dtype(self, x):
    self.out.to(torch.float64)
    y = self.out(self.go(x).double())
    self.out.to(torch.float32)
    return y


def zero_grad(self, x):
    self.zero_grad()
    return self.out(self.go(x))


def apply(self, x):
    self.apply(lambda module: None)
    return self.out(self.go(x))


def fork_rng(self, x):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        noise = torch.randn(6)
        return self.out(self.go(x) + noise)


def fork_imported(self, x):
    with fork():
        return self.out(self.go(x) + torch.randn(6))


def seed_torch(self, x):
    torch.manual_seed(1)
    return self.out(self.go(x) + torch.randn(6))


def seed_python(self, x):
    random.seed(1)
    return self.out(self.go(x))


def seed_numpy(self, x):
    np.random.seed(1)
    return self.out(self.go(x))


@contextmanager
def seeded(number):
    torch.manual_seed(number)
    yield


def seed_in_helper(self, x):
    with seeded(1):
        return self.out(self.go(x) + torch.randn(6))


class Seeded:
    def __enter__(self) -> None:
        torch.manual_seed(1)

    def __exit__(self, *_: object) -> None:
        pass


def seed_in_context(self, x):
    with Seeded():
        return self.out(self.go(x) + torch.randn(6))


def default_dtype(self, x):
    torch.set_default_dtype(torch.float64)
    y = self.go(x) + torch.ones(6)
    torch.set_default_dtype(torch.float32)
    return self.out(y.float())


def default_device(self, x):
    with torch.device("cpu"):
        return self.out(self.go(x) + torch.ones(6))


def deterministic(self, x):
    torch.use_deterministic_algorithms(True)
    y = self.go(x)
    torch.use_deterministic_algorithms(False)
    return self.out(y)


def threads(self, x):
    torch.set_num_threads(torch_threads)
    return self.out(self.go(x))


torch_threads = torch.get_num_threads()


def precision(self, x):
    torch.set_float32_matmul_precision("medium")
    y = self.go(x)
    torch.set_float32_matmul_precision("highest")
    return self.out(y)


def denormals(self, x):
    torch.set_flush_denormal(True)
    y = self.go(x)
    torch.set_flush_denormal(False)
    return self.out(y)


def anomalies(self, x):
    with torch.autograd.set_detect_anomaly(True):
        return self.out(self.go(x))


def attention_kernel(self, x):
    with sdpa_kernel(SDPBackend.MATH):
        return self.out(self.go(x))


def backend_flags(self, x):
    with mkldnn.flags(enabled=False):
        return self.out(self.go(x))


mkldnn = torch.backends.mkldnn


class Parametrized(Model):
    def __init__(self, branches: bool = False) -> None:
        super().__init__(branches)
        nn.utils.parametrizations.spectral_norm(self.a)

    def forward(self, x):
        with parametrize.cached():
            return self.out(self.a(self.go(x)))


def count_in_class(self, x):
    Count.calls += 1
    return self.out(self.go(x) * Count.calls)


def count_in_own_class(self, x):
    type(self).calls += 1
    return self.out(self.go(x) * self.calls)


def set_in_own_class(self, x):
    self.__class__.calls = self.calls + 1
    return self.out(self.go(x) * self.calls)


def count_in_variable(self, x):
    cls = type(self)
    cls.calls += 1
    return self.out(self.go(x) * self.calls)


class CountsInClassMethod(Model):
    @classmethod
    def count(cls) -> None:
        cls.calls += 1

    def forward(self, x):
        self.count()
        return self.out(self.go(x) * self.calls)


def set_by_name(self, x):
    setattr(Count, "calls", Count.calls + 1)  # noqa: B010
    return self.out(self.go(x) * Count.calls)


def set_past_the_class(self, x):
    object.__setattr__(self, "calls", self.calls + 1)
    return self.out(self.go(x) * self.calls)


def delete_past_the_class(self, x):
    if "seen" in self.notes:
        object.__delattr__(self, "notes")
    return self.out(self.go(x))


def delete_by_name(self, x):
    if hasattr(self, "rest"):
        delattr(self, "rest")
    return self.out(self.go(x))


def delete(self, x):
    weight = self.a.weight
    del self.a.weight
    self.a.weight = weight * 2
    y = self.go(x)
    del self.a.weight
    self.a.weight = weight
    return self.out(y)


def delete_item(self, x):
    if len(self.rest):
        del self.rest[0]
    return self.out(self.go(x))


def insert_item(self, x):
    if len(self.rest) < 2:
        self.rest.insert(0, nn.Identity())
    return self.out(self.rest[0](self.go(x)))


REGISTER = nn.Module.register_forward_hook


def hook_by_function(self, x):
    handle = REGISTER(self.a, lambda module, args, y: y * 3)
    y = self.go(x)
    handle.remove()
    return self.out(y)


def buffer(self, x):
    if not hasattr(self, "scale"):
        self.register_buffer("scale", torch.linspace(0, 1, x.size(-1)))
    return self.out(self.go(x) + self.scale)


def parameter(self, x):
    if not hasattr(self, "scale"):
        self.register_parameter("scale", None)
    return self.out(self.go(x))


def child(self, x):
    if not hasattr(self, "more"):
        self.add_module("more", nn.Identity())
    return self.out(self.more(self.go(x)))


MODULE = "of a module"
FUNCTIONS: dict[Callable[..., Any], str] = {
    functional_call: "calls functional_call()",
    stateless_call: "calls functional_call()",
    reparametrize: "calls _reparametrize_module()",
    imported_inside: "calls functional_call()",
    swap_parameter: "changes _parameters of a module",
    swap_buffer: "changes _buffers of a module",
    swap_module: "changes _modules of a module",
    forward_hook: f"calls register_forward_hook() {MODULE}",
    pre_hook: f"calls register_forward_pre_hook() {MODULE}",
    backward_hook: f"calls register_full_backward_hook() {MODULE}",
    hook_by_hand: "changes _forward_hooks of a module",
    hook_on_all: "calls register_module_forward_hook()",
    freeze: f"calls requires_grad_() {MODULE}",
    freeze_by_class: f"calls requires_grad_() {MODULE}",
    other_mode: f"calls train() {MODULE}",
    other_dtype: f"calls to() {MODULE}",
    zero_grad: f"calls zero_grad() {MODULE}",
    apply: f"calls apply() {MODULE}",
    fork_rng: "calls fork_rng()",
    fork_imported: "calls fork_rng()",
    seed_torch: "calls manual_seed()",
    seed_python: "calls seed()",
    seed_numpy: "calls seed()",
    seed_in_helper: "calls manual_seed()",
    seed_in_context: "calls manual_seed()",
    default_dtype: "calls set_default_dtype()",
    default_device: "enters torch.DeviceContext",
    deterministic: "calls use_deterministic_algorithms()",
    threads: "calls set_num_threads()",
    precision: "calls set_float32_matmul_precision()",
    denormals: "calls set_flush_denormal()",
    anomalies: "calls set_detect_anomaly()",
    attention_kernel: "calls sdpa_kernel()",
    backend_flags: "reads torch.backends",
    count_in_class: "assigns 'calls' of a class",
    count_in_own_class: "assigns 'calls' of a class",
    set_in_own_class: "assigns 'calls' of a class",
    count_in_variable: "assigns 'calls' of a class",
    set_by_name: "calls setattr() on a class",
    set_past_the_class: "calls object.__setattr__()",
    delete_past_the_class: "calls __delattr__()",
    delete_by_name: "calls delattr()",
    delete: "deletes the attribute 'weight'",
    delete_item: "changes a ModuleList",
    insert_item: "changes a ModuleList",
    hook_by_function: f"calls register_forward_hook() {MODULE}",
    buffer: f"calls register_buffer() {MODULE}",
    parameter: f"calls register_parameter() {MODULE}",
    child: f"calls add_module() {MODULE}",
}
REFUSED: dict[type[Model], str] = {
    **{type(f.__name__, (Model,), {"forward": f}): reason for f, reason in FUNCTIONS.items()},
    Freezes: f"calls requires_grad_() {MODULE}",
    Parametrized: "calls cached()",
    CountsInClassMethod: "assigns 'calls' of a class",
}


def process() -> list[Any]:
    """What a forward may change outside of its model."""
    return [
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_anomaly_enabled(),
        torch.backends.mkldnn.enabled,
        torch.backends.cuda.math_sdp_enabled(),
        parametrize._cache_enabled,
        len(nn.modules.module._global_forward_hooks),
        Count.calls,
        random.getstate(),
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
    ]


def model_state(model: nn.Module) -> list[Any]:
    """What a forward may change of its model."""
    return [
        *((n, p.requires_grad, p.dtype, id(p)) for n, p in model.named_parameters()),
        *((n, type(b), b.tolist()) for n, b in model.state_dict().items()),
        *((n, m.training, len(m._forward_hooks)) for n, m in model.named_modules()),
        *(sorted(vars(m)) for m in model.modules() if not isinstance(m, torch.fx.GraphModule)),
        getattr(model, "calls", None),
    ]


@pytest.mark.parametrize("branches", [False, True], ids=["whole", "aborted"])
@pytest.mark.parametrize("cls", REFUSED, ids=lambda cls: cls.__name__)
def test_what_outlives_the_call_stays_python(cls: Any, branches: bool) -> None:
    architecture = Architecture(name="case", make=cls, inputs=floats((4, 6), grad=False))
    seed()
    twin = cls(branches)
    seed()
    model = cls(branches)
    seed(1)
    Count.calls = 0
    cls.calls = 0
    before, state = process(), model_state(model)
    bio = biofx.transform(model)
    assert process() == before
    assert model_state(model) == state
    assert {n: p.requires_grad for n, p in bio.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    assert list(bio.state_dict()) == list(model.state_dict())
    assert REFUSED[cls] in "; ".join(biofx.info(bio).opaque.values())
    for draw, train in ((0, True), (1, False), (2, True)):
        outcomes = []
        for one in (twin, bio):
            Count.calls = cls.calls = draw
            outcomes.append(run(one, architecture, train=train, draw=draw))
        assert_same(*outcomes, f"run {draw}")
    assert list(bio.state_dict()) == list(twin.state_dict())


# --- what looks alike and can be captured


def reads_registries(self, x):
    found = {}
    for name, module in self._modules.items():
        if name in ("a", "norm"):
            x = module(x)
            found[name] = x
    return self.out(found["norm"] + self._modules["rest"][0](x))


class OwnNames(Model):
    """Methods of its own that are named like those of `nn.Module`."""

    def apply(self, x):
        return x * 2

    def type(self, x):
        return super().forward(x.float()).to(x.dtype)

    def forward(self, x):
        return self.out(self.apply(self.go(x)).to(x.dtype))


class Result:
    pass


def local_object(self, x):
    result = Result()
    result.value = self.go(x)
    return self.out(result.value)


CAPTURED = [
    OwnNames,
    *(type(f.__name__, (Model,), {"forward": f}) for f in (reads_registries, local_object)),
]


@pytest.mark.parametrize("cls", CAPTURED, ids=lambda cls: cls.__name__)
def test_what_changes_nothing_is_captured(cls: Any) -> None:
    architecture = Architecture(name="case", make=cls, inputs=floats((4, 6), grad=False))
    seed()
    twin = cls()
    seed()
    bio = biofx.transform(cls())
    assert not biofx.info(bio).opaque
    for train in (True, False):
        assert_same(run(twin, architecture, train=train), run(bio, architecture, train=train))


def test_a_handle_kept_is_not_removed_by_tracing() -> None:
    class Removes(Model):
        handle: RemovableHandle

        def forward(self, x):
            self.handle.remove()
            return self.out(self.go(x))

    model = Removes()
    model.handle = model.a.register_forward_hook(lambda module, args, y: y * 3)
    biofx.transform(model)
    assert len(model.a._forward_hooks) == 1
