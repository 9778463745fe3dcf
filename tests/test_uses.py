"""What people do with a model, done to a transformed one and to its twin: the same comes of it."""

import copy
import inspect
import pickle
import types
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import biofx
from tests.architectures import seed
from tests.fidelity import assert_equal


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check(make: Callable[[], Any], use: Callable[[Any], Any]) -> None:
    """A use gives the same on a twin and on transformed models, captured in either mode."""
    seed()
    twin = make()
    seed(1)
    expected = use(twin)
    for train in (True, False):
        seed()
        bio = biofx.transform(make().train(train)).train()
        seed(1)
        assert_equal(expected, use(bio), use.__name__)


def trained(model: Any, loss: Callable[[Any], Tensor], steps: int = 3) -> list[Any]:
    """Losses of some steps, and the state afterwards."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        optimizer.step()
        losses.append(value.detach().clone())
    return [losses, {name: value.clone() for name, value in model.state_dict().items()}]


def squares(x: Tensor) -> Callable[[Any], Tensor]:
    return lambda model: model(x).pow(2).mean()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.3), nn.Linear(16, 8))

    def forward(self, x, scale=None):
        y = x + self.body(self.norm(x))
        return y if scale is None else y * scale


class Stack(nn.Module):
    """Blocks that may be recomputed in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.gradient_checkpointing = self.reentrant = False
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block.__call__, x, use_reentrant=self.reentrant)
            else:
                x = block(x)
        return self.head(x)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    )


# --- training


def test_checkpointing() -> None:
    def use(model: Any) -> Any:
        x = torch.randn(4, 8, requires_grad=True)
        found = [trained(model, squares(x))]
        for model.gradient_checkpointing, model.reentrant in ((True, False), (True, True)):
            found.append(trained(model, squares(x)))
        found += [x.grad, checkpoint(model, x, use_reentrant=False)]
        parts = nn.Sequential(*model.blocks)
        return [*found, checkpoint_sequential(parts, 2, x, use_reentrant=False), model.eval()(x)]

    check(Stack, use)


def test_a_target_network() -> None:
    def use(model: Any) -> Any:
        target = copy.deepcopy(model).requires_grad_(False)
        found = []
        for _ in range(3):
            x = torch.randn(5, 8)
            with torch.no_grad():
                wanted = target(x) * 0.9 + 1
            found += trained(model, lambda m, x=x, wanted=wanted: F.mse_loss(m(x), wanted), 1)
            for mine, theirs in zip(target.parameters(), model.parameters(), strict=True):
                mine.data.mul_(0.9).add_(theirs.data, alpha=0.1)
        found.append(dict(target.state_dict()))
        target.load_state_dict(model.state_dict())
        return [*found, target(x)]

    check(mlp, use)


def test_averaged_models() -> None:
    def use(model: Any) -> Any:
        x = torch.randn(2, 3, 5, 5)
        mean = AveragedModel(model)
        moving = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        for _ in range(3):
            trained(model, squares(x), 1)
            mean.update_parameters(model)
            moving.update_parameters(model)
        update_bn([x, x + 1], mean)
        return [mean.eval()(x), moving.eval()(x), dict(mean.state_dict())]

    check(convolutions, use)


def test_adversaries() -> None:
    """A generator and a discriminator with a gradient penalty, trained in turn."""

    def make() -> nn.Module:
        critic = nn.Sequential(
            parametrizations.spectral_norm(nn.Linear(8, 16)), nn.LeakyReLU(0.2), nn.Linear(16, 1)
        )
        generator = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
        return nn.ModuleDict({"generator": generator, "critic": critic})

    def use(model: Any) -> Any:
        generator, critic = model["generator"], model["critic"]

        def judge(critic: Any) -> Tensor:
            real = torch.randn(6, 8, requires_grad=True)
            score = critic(real)
            (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
            fake = generator(torch.randn(6, 4)).detach()
            return F.softplus(critic(fake)).mean() - score.mean() + slope.pow(2).sum(1).mean()

        def fool(generator: Any) -> Tensor:
            return F.softplus(-critic(generator(torch.randn(6, 4)))).mean()

        found = []
        for _ in range(2):
            critic.requires_grad_(True)
            found.append(trained(critic, judge, 1))
            critic.requires_grad_(False)
            found.append(trained(generator, fool, 1))
        return found

    check(make, use)


def test_hooks_that_change_what_flows() -> None:
    def use(model: Any) -> Any:
        x = torch.randn(4, 8)
        handles = [
            model.blocks[0].register_forward_hook(lambda m, a, out: out * 2),
            model.blocks[1].register_forward_pre_hook(
                lambda m, a, k: ((a[0] + 1,), {"scale": 3.0}), with_kwargs=True
            ),
            model.blocks[1].norm.register_full_backward_pre_hook(lambda m, g: (g[0] * 0.5,)),
            model.head.register_full_backward_hook(lambda m, gi, go: (gi[0] * 2,)),
        ]
        found = [trained(model, squares(x))]
        for handle in handles:
            handle.remove()
        return [*found, trained(model, squares(x))]

    check(Stack, use)


def test_several_threads() -> None:
    def use(model: Any) -> Any:
        inputs = torch.randn(16, 4, 8)
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(model.eval(), inputs))

    check(Stack, use)


# --- torch.func


def test_function_transforms() -> None:
    def use(model: Any) -> Any:
        x = torch.randn(3, 8)
        parameters = dict(model.named_parameters())

        def loss(parameters: Any, x: Tensor) -> Tensor:
            return torch.func.functional_call(model, parameters, (x,)).pow(2).sum()

        gradient = torch.func.grad(loss)
        return [
            gradient(parameters, x),
            torch.func.vmap(gradient, (None, 0))(parameters, x),
            torch.func.jacrev(model)(x),
            torch.func.jacfwd(model)(x),
            torch.func.hessian(lambda x: model(x).sum())(x[0]),
            torch.func.jvp(model, (x,), (x,)),
        ]

    check(mlp, use)


def test_an_ensemble_of_copies() -> None:
    def use(model: Any) -> Any:
        models = [model, copy.deepcopy(model), copy.deepcopy(model)]
        for member in models:
            member.apply(lambda m: nn.init.normal_(m.weight) if hasattr(m, "weight") else None)
        parameters, buffers = torch.func.stack_module_state(models)
        skeleton = copy.deepcopy(model).to("meta")

        def call(parameters: Any, buffers: Any, x: Tensor) -> Tensor:
            return torch.func.functional_call(skeleton, (parameters, buffers), (x,))

        x = torch.randn(3, 8)
        return torch.func.vmap(call, (0, 0, None))(parameters, buffers, x)

    check(mlp, use)


# --- surgery


def test_blocks_are_taken_out_and_put_in() -> None:
    def use(model: Any) -> Any:
        x = torch.randn(4, 8)
        found = []
        for change in (
            lambda: setattr(model, "blocks", model.blocks[:2]),
            lambda: model.blocks.append(Block()),
            lambda: model.blocks.__setitem__(0, nn.Identity()),
            lambda: setattr(model.blocks[1], "forward", types.MethodType(twice, model.blocks[1])),
            lambda: delattr(model.blocks[1], "forward"),
            lambda: model.blocks.__delitem__(0),
            lambda: model.blocks.extend(list(model.blocks)),
            lambda: setattr(model.blocks[0].body[2], "p", 0.9),
            lambda: setattr(model, "head", nn.Linear(8, 5)),
        ):
            change()
            found.append(model(x))
        return found

    def twice(block: Any, x: Tensor) -> Tensor:
        return x * 2

    check(Stack, use)


def test_a_sequence_is_edited() -> None:
    def use(model: Any) -> Any:
        x = torch.randn(2, 3, 5, 5)
        found = []
        for change in (
            lambda: model.__setitem__(4, nn.Linear(36, 5)),
            lambda: model.append(nn.Tanh()),
            lambda: model.insert(2, nn.Dropout(0.5)),
            lambda: model.__delitem__(2),
            lambda: model.pop(5),
            lambda: model.extend([nn.ReLU(), nn.Linear(5, 2)]),
        ):
            change()
            found.append(model(x))
        fused = nn.utils.fusion.fuse_conv_bn_eval(model[0].eval(), model[1].eval())
        joined = model + nn.Sequential(nn.Linear(2, 1))
        return [*found, fused(x), model[:2](x), joined(x)]

    check(convolutions, use)


def test_pruning() -> None:
    def use(model: Any) -> Any:
        x = torch.randn(3, 8)
        prune.l1_unstructured(model[0], "weight", 0.3)
        found = [model(x), trained(model, squares(x))]
        prune.ln_structured(model[2], "weight", 0.5, n=2, dim=0)
        found.append(model(x))
        prune.remove(model[0], "weight")
        both = [(model[0], "weight"), (model[2], "weight")]
        prune.global_unstructured(both, prune.L1Unstructured, amount=0.2)
        return [*found, list(model.state_dict()), trained(model, squares(x))]

    check(mlp, use)


def test_parametrizing_later() -> None:
    def use(model: Any) -> Any:
        x = torch.randn(3, 8)
        parametrizations.weight_norm(model[0])
        parametrizations.orthogonal(model[2])
        found = [model(x), trained(model, squares(x)), copy.deepcopy(model)(x)]
        parametrize.remove_parametrizations(model[0], "weight")
        assert isinstance(model[0], nn.Linear)
        return [*found, model(x), list(model.state_dict())]

    check(mlp, use)


@pytest.mark.parametrize("later", [False, True], ids=["before", "later"])
def test_a_parametrized_module_that_is_captured(later: bool) -> None:
    def make() -> nn.Module:
        first = Kernel() if later else parametrizations.weight_norm(Kernel(), "kernel")
        return nn.Sequential(first, nn.Tanh(), Kernel())

    def use(model: Any) -> Any:
        x = torch.randn(3, 8)
        if later:
            parametrizations.weight_norm(model[0], "kernel")
        copied = copy.deepcopy(model)
        with pytest.raises(RuntimeError, match="only supported through state_dict"):
            pickle.dumps(model)
        return [model(x), trained(copied, squares(x)), list(copied.state_dict()), model(x)]

    check(make, use)


def test_a_part_goes_into_another_model() -> None:
    seed()
    twin = mlp()
    seed()
    bio = biofx.transform(mlp())
    parts = []
    for model in (twin, bio):
        seed(1)
        parts.append(nn.Sequential(model[0], nn.ReLU(), Block8(), model))
    again = biofx.transform(parts[1])
    assert {"0.weight", "2.fc.weight", "3.2.weight"} <= set(biofx.info(again).synapses)
    x = torch.randn(3, 8)
    assert_equal(trained(parts[0], squares(x)), trained(again, squares(x)), "again")


class Kernel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return x @ self.kernel


class Block8(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 8)

    def forward(self, x):
        return self.fc(x)


# --- looking at it from outside


def test_parameters_and_dtypes() -> None:
    def use(model: Any) -> Any:
        x = torch.randn(3, 8)
        vector = nn.utils.parameters_to_vector(model.parameters())
        nn.utils.vector_to_parameters(vector * 0.5, model.parameters())
        found = [model(x), nn.DataParallel(model)(x), model.double()(x.double())]
        model.float().apply(lambda m: nn.init.ones_(m.weight) if hasattr(m, "weight") else None)
        found += [model(x), nn.utils.clip_grad_norm_(model.parameters(), 1.0)]
        ones = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
        model.to_empty(device="cpu").load_state_dict(ones, assign=True)
        return [*found, model(x)]

    check(mlp, use)


def test_other_tracers() -> None:
    def use(model: Any) -> Any:
        x = torch.randn(3, 8)
        return [
            torch.jit.trace(model, x)(x),
            torch.fx.symbolic_trace(model)(x),
            torch.export.export(model, (x,)).module()(x),
        ]

    check(mlp, use)


def test_signatures() -> None:
    def use(model: Any) -> Any:
        parameters = inspect.signature(model.forward).parameters.values()
        return [(p.name, repr(p.default), str(p.kind)) for p in parameters]

    check(Block, use)
    check(Stack, use)


def test_errors() -> None:
    def use(model: Any) -> Any:
        raised = []
        for wrong in (
            lambda: model(torch.randn(3, 5)),
            lambda: model(),
            lambda: model(1),
            lambda: model(torch.randn(3, 8), 2),
            lambda: model(unknown=1),
            lambda: model.missing,
            lambda: model.load_state_dict({}),
            lambda: setattr(model[0], "weight", 3),
        ):
            with pytest.raises(Exception) as error:  # noqa: PT011
                wrong()
            raised.append(error.type)
        return raised

    check(mlp, use)
