"""Promise 7: a transformed model is an ordinary `nn.Module`."""

import copy
import io
import itertools
import pickle
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import biofx
from biofx.errors import ConfigError, ModelError
from tests.architectures import BY_NAME, Architecture, floats, seed, tensors_in, with_tags
from tests.fidelity import assert_equal, assert_same, run

WEIGHTY = with_tags(without=("no_weights", "norms_only"))
CAPTURED = with_tags("captured", without=("no_weights", "norms_only"))
EXPANDED = biofx.BioConfig(weight_splitting_Gamma=2, weight_splitting_mode="expand")


def without(*tags: str) -> pytest.MarkDecorator:
    """All architectures that carry none of the tags."""
    kept = [entry for entry in WEIGHTY if not entry.tags & set(tags)]
    return pytest.mark.parametrize("architecture", kept, ids=str)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def pair(architecture: Architecture, **settings: Any) -> tuple[nn.Module, nn.Module]:
    """An untransformed twin and a transformed model of the same values."""
    seed()
    twin = architecture.make()
    seed()
    return twin, biofx.transform(architecture.make(), **settings)


def step(model: nn.Module) -> None:
    """Change every parameter that has a gradient."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad


# --- copies and files


@without("no_deepcopy", "lossy_copy")
def test_a_deep_copy_trains_itself(architecture: Architecture) -> None:
    twin, bio = pair(architecture)
    copied = copy.deepcopy(bio)
    assert type(copied).__name__ == type(bio).__name__
    assert list(copied.state_dict()) == list(bio.state_dict())
    ids = {id(p) for p in bio.parameters()}
    assert not ids & {id(p) for p in copied.parameters()}
    before = {name: value.clone() for name, value in bio.state_dict().items()}
    for draw in range(2):
        assert_same(
            run(twin, architecture, train=True, draw=draw),
            run(copied, architecture, train=True, draw=draw),
        )
        step(twin)
        step(copied)
    assert_same(run(twin, architecture, train=False), run(copied, architecture, train=False))
    assert_equal(before, dict(bio.state_dict()), "the original")
    assert biofx.info(copied).synapses == biofx.info(bio).synapses


def test_classes_can_be_derived_from_transformed_ones() -> None:
    """As `higher` does, whose modules of a step within a step have no parameters of their own."""
    bio = biofx.transform(nn.Sequential(nn.Linear(4, 3), nn.ReLU()))
    cls: Any = type(bio[0])

    class Patched(cls):  # type: ignore[misc]
        def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
            nn.Module.__init__(self)
            self.weight, self.bias = weight, bias

    x = torch.randn(2, 4)
    weight, bias = (2 * parameter.detach() for parameter in bio[0].parameters())
    assert torch.equal(Patched(weight, bias)(x), F.linear(x, weight, bias))
    assert type(bio[:1]) is nn.Sequential


def test_weak_references_lead_to_the_copy() -> None:
    seed()
    model = BY_NAME["weak_parent_reference"].make()
    bio = biofx.transform(model)
    assert bio.child.parent() is bio
    assert model.child.parent() is model


def test_weak_references_in_functions_and_proxies_lead_to_the_copy() -> None:
    seed()
    model = BY_NAME["weak_parent_proxy"].make()
    reference = weakref.ref(model)
    model.child.later = lambda: reference().shared  # type: ignore[union-attr]
    bio = biofx.transform(model)
    for one in (bio, model):
        assert one.child.parent[0].shared is one.shared
        assert one.child.later() is one.shared
        (cell,) = one.child.shift.__closure__
        assert cell.cell_contents.shared is one.shared


@without("no_pickle", "lossy_copy")
def test_pickle(architecture: Architecture) -> None:
    twin, bio = pair(architecture)
    loaded = pickle.loads(pickle.dumps(bio))
    assert biofx.info(loaded).synapses == biofx.info(bio).synapses
    assert biofx.info(loaded).layers == biofx.info(bio).layers
    assert [type(m).__name__ for m in loaded.modules()] == [type(m).__name__ for m in bio.modules()]
    for train in (True, False):
        assert_same(run(twin, architecture, train=train), run(loaded, architecture, train=train))
    for module, again in zip(bio.modules(), loaded.modules(), strict=True):
        graphs = [getattr(m, "graph", None) for m in (module, again)]
        if isinstance(graphs[0], torch.fx.Graph):
            assert str(graphs[0]) == str(graphs[1])
            marks = [[node.meta.get("biofx") for node in graph.nodes] for graph in graphs]
            assert marks[0] == marks[1]


@pytest.mark.parametrize("name", ["resnet18", "gpt", "training_branch_in_root", "tied_layers"])
def test_save_and_load(name: str, tmp_path: Path) -> None:
    architecture = BY_NAME[name]
    twin, bio = pair(architecture)
    torch.save(bio, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert_same(run(twin, architecture, train=True), run(loaded, architecture, train=True))


def test_a_shallow_copy_shares_its_parameters() -> None:
    architecture = BY_NAME["resnet18"]
    twin, bio = pair(architecture)
    copied = copy.copy(bio)
    assert copied is not bio
    assert next(copied.parameters()) is next(bio.parameters())
    assert_same(run(twin, architecture, train=False), run(copied, architecture, train=False))


@without("torchscript")
def test_state_dicts_fit_both_ways(architecture: Architecture) -> None:
    seed(1)
    other = architecture.make()
    twin, bio = pair(architecture)
    for model in (twin, bio):
        model.load_state_dict(other.state_dict())
    assert_same(run(twin, architecture, train=True), run(bio, architecture, train=True))
    other.load_state_dict(bio.state_dict())
    assert_equal(dict(bio.state_dict()), dict(other.state_dict()), "written")


@pytest.mark.parametrize("name", ["resnet18", "bert", "mlp_mixer", "vision_transformer", "u_net"])
def test_a_plain_checkpoint_in_an_expanded_model_is_the_same_function(name: str) -> None:
    architecture = BY_NAME[name]
    seed(1)
    other = architecture.make()
    _, bio = pair(architecture, config=EXPANDED)
    assert any(s.split == "expand" for s in biofx.info(bio).synapses.values())
    bio.load_state_dict(other.state_dict())
    expected, found = (run(m, architecture, train=False).output for m in (other, bio))
    for mine, theirs in zip(tensors_in(expected), tensors_in(found), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    again = io.BytesIO()
    torch.save(bio.state_dict(), again)
    again.seek(0)
    bio.load_state_dict(torch.load(again, weights_only=True))


# --- devices and dtypes


@pytest.mark.parametrize("name", ["resnet18", "gpt", "lstm", "training_branch_in_root"])
def test_to_dtype(name: str) -> None:
    architecture = BY_NAME[name]
    twin, bio = (model.to(torch.float64).eval() for model in pair(architecture))
    seed(1)
    args, kwargs = architecture.inputs()
    args = tuple(a.double() if a.is_floating_point() else a for a in args)
    assert_equal(twin(*args, **kwargs), bio(*args, **kwargs), name)


@without("torchscript")
def test_models_on_the_meta_device(architecture: Architecture) -> None:
    try:
        with torch.device("meta"):
            seed()
            model = architecture.make()
            args, kwargs = architecture.inputs()
            expected = model.eval()(*args, **kwargs)
    except Exception:
        pytest.skip("the original does not run on meta")
    with torch.device("meta"):
        bio = biofx.transform(model)
        found = bio.eval()(*args, **kwargs)
    assert all(p.is_meta for p in bio.parameters())
    for mine, theirs in zip(tensors_in(expected), tensors_in(found), strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)


def test_a_meta_model_is_filled_later() -> None:
    architecture = BY_NAME["resnet18"]
    twin, real = pair(architecture)
    with torch.device("meta"):
        bio = biofx.transform(architecture.make())
    bio.to_empty(device="cpu")
    bio.load_state_dict(real.state_dict())
    assert_same(run(twin, architecture, train=True), run(bio, architecture, train=True))


def test_fake_tensors() -> None:
    with FakeTensorMode():
        bio = biofx.transform(Net())
        assert bio(torch.ones(4, 8)).shape == (4, 4)


# --- torch.func, torch.compile, torch.distributed


@pytest.mark.parametrize("architecture", CAPTURED[::6], ids=str)
def test_functional_call(architecture: Architecture) -> None:
    twin, bio = pair(architecture)
    bio.eval()
    twin.eval()
    values = {name: value * 0.5 for name, value in twin.state_dict().items() if value.ndim >= 2}
    seed(1)
    args, kwargs = architecture.inputs()
    seed(2)
    try:
        expected = torch.func.functional_call(twin, values, args, kwargs)
    except Exception:
        pytest.skip("the original cannot be called so")
    seed(2)
    found = torch.func.functional_call(bio, values, args, kwargs)
    assert_equal(expected, found, "functional call")


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, marks=[pytest.mark.slow] * bool(i % 12)) for i, a in enumerate(CAPTURED)],
    ids=str,
)
def test_compile_without_graph_breaks(architecture: Architecture) -> None:
    twin, _ = pair(architecture)
    torch._dynamo.reset()
    seed(1)
    args, kwargs = architecture.inputs()
    try:
        torch.compile(twin, fullgraph=True, backend="eager")(*args, **kwargs)
    except Exception:
        pytest.skip("the original does not compile")
    twin, bio = pair(architecture)
    torch._dynamo.reset()
    compiled = torch.compile(bio, fullgraph=True, backend="eager")
    for train in (True, False):
        assert_equal(
            run(twin, architecture, train=train).output,
            run(compiled, architecture, train=train).output,
            "compiled",
        )
    assert biofx.info(compiled).synapses


def test_aot_autograd() -> None:
    architecture = BY_NAME["resnet18"]
    twin, bio = pair(architecture)
    torch._dynamo.reset()
    compiled = torch.compile(bio, fullgraph=True, backend="aot_eager")
    expected = run(twin, architecture, train=True)
    found = run(compiled, architecture, train=True)
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(gradient, found.gradients[f"_orig_mod.{name}"])


@pytest.fixture
def _process_group(tmp_path: Path) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_process_group")
@pytest.mark.parametrize("name", ["resnet18", "gpt", "training_branch_in_root"])
def test_distributed_data_parallel(name: str) -> None:
    architecture = BY_NAME[name]
    twin, bio = pair(architecture)
    wrapped = nn.parallel.DistributedDataParallel(bio, find_unused_parameters=True)
    expected, found = (run(m, architecture, train=True) for m in (twin, wrapped))
    assert_equal(expected.output, found.output, "output")
    gradients = {name.removeprefix("module."): value for name, value in found.gradients.items()}
    assert_equal(expected.gradients, gradients, "gradients")
    assert biofx.info(wrapped).synapses == biofx.info(bio).synapses


@pytest.mark.usefixtures("_process_group")
@pytest.mark.parametrize("name", ["resnet18", "vision_transformer", "training_branch_in_root"])
def test_fully_shard(name: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    architecture = BY_NAME[name]
    twin, bio = pair(architecture)
    mesh = init_device_mesh("cpu", (1,))
    for module in list(bio.children()):
        if list(module.parameters()) and type(module).forward is not nn.Module.forward:
            fully_shard(module, mesh=mesh)
    fully_shard(bio, mesh=mesh)
    assert all(isinstance(p, DTensor) for p in bio.parameters())
    expected, found = (run(m, architecture, train=True) for m in (twin, bio))
    assert_equal(expected.output, found.output, "output")
    for key, gradient in expected.gradients.items():
        if gradient is not None:
            assert torch.equal(gradient, found.gradients[key].full_tensor()), key


# --- used as people use modules


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = F.dropout(self.backbone(x), 0.5, self.training)
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


NET = Architecture(name="net", make=Net, inputs=floats((4, 8), grad=False))


def test_modes_of_submodules_are_their_own() -> None:
    twin, bio = pair(NET)
    for whole, backbone in itertools.product((True, False), repeat=2):
        results = []
        for model in (twin, bio):
            model.train(whole)
            model.backbone.train(backbone)
            seed(1)
            results.append(model(*NET.inputs()[0]))
        assert torch.equal(*results)
    assert torch.equal(twin.backbone[1].running_mean, bio.backbone[1].running_mean)


def test_a_child_that_registers_its_parent() -> None:
    def make() -> nn.Module:
        model = Net()
        model.head.parent = model
        return model

    seed()
    twin = make()
    seed()
    bio = biofx.transform(make())
    assert bio.head.parent is bio
    x = torch.ones(4, 8)
    seed(1)
    expected = twin(x)
    seed(1)
    assert torch.equal(expected, bio(x))


def test_hooks_registered_later_fire() -> None:
    twin, bio = pair(NET)
    seen = {twin: [], bio: []}
    for model, calls in seen.items():
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda m, a, n=name, c=calls: c.append(f"pre {n}"))
            module.register_forward_hook(lambda m, a, o, n=name, c=calls: c.append(f"post {n}"))
            module.register_full_backward_hook(lambda m, i, o, n=name, c=calls: c.append(f"b {n}"))
        model.head.register_forward_hook(lambda m, a, out: out * 2)
    assert_same(run(twin, NET, train=True), run(bio, NET, train=True))
    assert seen[twin] == seen[bio]
    assert len(seen[bio]) > 10


def test_indexing_slicing_and_classes() -> None:
    _, bio = pair(NET)
    assert isinstance(bio, Net)
    assert isinstance(bio.backbone, nn.Sequential)
    assert isinstance(bio.backbone[0], nn.Linear)
    assert isinstance(bio.layers, nn.ModuleList)
    assert len(bio.backbone) == 3
    assert type(bio.backbone[:2]).__name__ == "Sequential"
    assert bio.backbone[:2](torch.ones(4, 8)).shape == (4, 8)
    assert list(bio.layers[1:]) == [bio.layers[1]]
    assert bio.get_submodule("backbone.0") is bio.backbone[0]
    assert [name for name, _ in bio.named_children()] == ["backbone", "layers", "head"]
    assert "BioLinear(in_features=8" in repr(bio)


def test_a_child_replaced_later_is_used() -> None:
    twin, bio = pair(NET)
    for model in (twin, bio):
        seed(5)
        model.head = nn.Sequential(nn.Linear(8, 6), nn.Tanh())
        model.layers[0] = nn.Linear(8, 8, bias=False)
        model.backbone.append(nn.ReLU())
    assert_same(run(twin, NET, train=True), run(bio, NET, train=True))


def test_freezing_and_thawing() -> None:
    twin, bio = pair(NET)
    for model in (twin, bio):
        model.backbone.requires_grad_(False)
    assert_same(run(twin, NET, train=True), run(bio, NET, train=True))
    for model in (twin, bio):
        model.requires_grad_(True)
    assert_same(run(twin, NET, train=True), run(bio, NET, train=True))


def test_an_optimizer_made_before_goes_on_working() -> None:
    seed()
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bio = biofx.transform(model)
    before = bio.head.weight.clone()
    seed(1)
    bio(*NET.inputs()[0]).sum().backward()
    optimizer.step()
    assert not torch.equal(before, bio.head.weight)
    assert bio.head.weight is model.head.weight


def test_autocast_and_no_grad_at_capture_leave_no_trace() -> None:
    twin, _ = pair(NET)
    seed()
    model = Net()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        bio = biofx.transform(model, EXPANDED)
    assert biofx.verify(bio, twin, NET.inputs()[0])
    with torch.inference_mode():
        bio = biofx.transform(model, EXPANDED)
    assert not any(p.is_inference() for p in bio.parameters())
    assert biofx.verify(bio, twin, NET.inputs()[0])
    seed()
    bio = biofx.transform(Net())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(run(twin, NET, train=True), run(bio, NET, train=True))
    with torch.no_grad():
        assert_same(run(twin, NET, train=False), run(bio, NET, train=False))


# --- what is refused, and leaves nothing behind


def test_transforming_twice_is_an_error() -> None:
    _, bio = pair(NET)
    for model in (bio, torch.compile(bio, backend="eager")):
        with pytest.raises(ModelError, match="already"):
            biofx.transform(model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Net, "Net is a class; pass an instance"),
        (42, "expected a torch.nn.Module, got int"),
        (nn.Sequential(nn.ReLU()), "no weight layer"),
        (nn.Sequential(nn.LazyLinear(3)), "lazy layers have no weights yet: 0"),
        (nn.Sequential(nn.Linear(2, 2), nn.LazyBatchNorm1d()), "lazy layers .*: 1"),
    ],
)
def test_what_cannot_be_transformed_says_why(model: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        biofx.transform(model)


def test_a_failed_transformation_in_place_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))
    before = [(type(m), sorted(vars(m)), list(m._forward_hooks)) for m in model.modules()]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match="divide"):
        biofx.transform(model, biofx.BioConfig(weight_splitting_Gamma=5), inplace=True)
    assert before == [(type(m), sorted(vars(m)), list(m._forward_hooks)) for m in model.modules()]
    assert_equal(values, dict(model.state_dict()), "values")


def patchable() -> dict[str, Any]:
    """What a capture replaces while it lasts."""
    return {
        "torch.randn": torch.randn,
        "setattr": nn.Module.__setattr__,
        "call": nn.Module.__call__,
        "getattr": nn.Module.__getattr__,
        "no_grad": torch.no_grad.__enter__,
        "parameters": nn.Module.parameters,
    }


def test_nothing_stays_patched() -> None:
    before = patchable()
    assert "__getattribute__" not in vars(nn.Module)
    pair(NET)
    with pytest.raises(ConfigError):
        biofx.transform(Net(), biofx.BioConfig(weight_splitting_Gamma=5))
    assert patchable() == before
    assert "__getattribute__" not in vars(nn.Module)
    assert not torch.fx._symbolic_trace.is_fx_tracing()
