"""Python control flow in `forward`: modes, data, loops, recursion, dispatch."""

import random

import torch
import torch.nn.functional as F
from torch import nn
from torch import pow as power

from .table import architecture, floats


@architecture("functional_dropout", floats((4, 8)), tags={"training", "rng"})
class FunctionalDropout(nn.Module):
    """`F.dropout(x, p, self.training)`: the flag must follow the mode."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.p = 0.5

    def forward(self, x):
        x = F.dropout(self.fc(x), self.p, self.training)
        return F.alpha_dropout(x, p=0.1, training=self.training)


@architecture("functional_dropout_expression", floats((4, 8)), tags={"training", "rng"})
class FunctionalDropoutExpression(nn.Module):
    """The flag goes through `and`, `not` and a conditional expression."""

    def __init__(self, p=0.25):
        super().__init__()
        self.fc, self.p = nn.Linear(8, 8), p

    def forward(self, x):
        x = F.dropout(self.fc(x), self.p, training=self.training and self.p > 0)
        x = F.dropout(x, self.p if self.training else 0.0)
        return x * (1 + (not self.training))


@architecture("functional_batch_norm", floats((4, 8)), tags={"training", "stateful"})
class FunctionalBatchNorm(nn.Module):
    """`F.batch_norm` with running buffers and `self.training`."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def forward(self, x):
        return F.batch_norm(self.fc(x), self.mean, self.var, training=self.training)


class TrainingBranch(nn.Module):
    """`if self.training`, in a submodule."""

    def __init__(self, width=8):
        super().__init__()
        self.train_path, self.eval_path = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        if self.training:
            return self.train_path(x) + 0.1 * torch.randn_like(x)
        return self.eval_path(x)


@architecture("training_branch_in_submodule", floats((4, 8)), tags={"training", "rng"})
def training_branch_in_submodule():
    return nn.Sequential(nn.Linear(8, 8), TrainingBranch(), nn.ReLU(), nn.Linear(8, 4))


@architecture("training_branch_in_root", floats((4, 8)), tags={"training", "rng"})
def training_branch_in_root():
    return TrainingBranch()


@architecture("training_branch_changes_output_type", floats((4, 8)), tags={"training"})
class TrainingOutputs(nn.Module):
    """Auxiliary outputs in training only (Inception, deep supervision)."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.auxiliary = nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.body(x))
        return (self.head(x), self.auxiliary(x)) if self.training else self.head(x)


@architecture("training_flag_of_child", floats((4, 8)), tags={"training", "rng"})
class TrainingFlagOfChild(nn.Module):
    """The parent reads its child's flag, the child's rate, and hands its own flag down."""

    class Noise(nn.Module):
        def forward(self, x, active):
            return F.dropout(x, 0.3, active)

    def __init__(self):
        super().__init__()
        self.fc, self.drop, self.noise = nn.Linear(8, 8), nn.Dropout(0.4), self.Noise()

    def forward(self, x):
        x = F.dropout(self.fc(x), self.drop.p, self.drop.training)
        return self.noise(x, self.training)


@architecture("nested_dropouts", floats((4, 8)), tags={"captured", "rng"})
class NestedDropouts(nn.Module):
    """Dropout layers at three depths, one inside a container that is also called on its own."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Dropout(0.2), nn.Tanh()))
        self.drop = nn.Dropout1d(0.5)

    def forward(self, x):
        return self.inner(self.drop(x)) + self.inner[1](x)


@architecture("partly_eval", floats((8, 8)), tags={"stateful", "training"})
class PartlyEval(nn.Module):
    """`train()` overridden so that frozen batch norms stay in eval mode (fine-tuning)."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))
        self.live = nn.BatchNorm1d(8)
        self.train()

    def train(self, mode=True):
        super().train(mode)
        self.net[1].eval()
        return self

    def forward(self, x):
        return self.live(self.net(x))


class DropPath(nn.Module):
    """Stochastic depth as in timm: identity outside training or at rate 0."""

    def __init__(self, rate=0.0):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask.div_(keep)


@architecture("stochastic_depth", floats((4, 8)), tags={"training", "rng"})
class StochasticDepth(nn.Module):
    """Residual blocks with growing DropPath rates."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.paths = nn.ModuleList(DropPath(rate) for rate in (0.0, 0.3, 0.6))

    def forward(self, x):
        for block, path in zip(self.blocks, self.paths, strict=True):
            x = x + path(torch.relu(block(x)))
        return x


@architecture("layer_drop", floats((4, 8)), tags={"training", "rng"})
class LayerDrop(nn.Module):
    """Whole layers skipped by Python's random numbers in training."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            if self.training and random.random() < 0.5:
                continue
            x = x + torch.tanh(layer(x))
        return x


class DataBranch(nn.Module):
    """`if x.sum() > 0`."""

    def __init__(self, width=8):
        super().__init__()
        self.positive, self.negative = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        if x.sum() > 0:
            return self.positive(x)
        return self.negative(x)


@architecture("data_branch_in_submodule", floats((4, 8)), tags={"data"})
def data_branch_in_submodule():
    return nn.Sequential(nn.Linear(8, 8), DataBranch(), nn.GELU(), DataBranch(), nn.Linear(8, 2))


@architecture("while_on_data", floats((4, 8)), tags={"data"})
class WhileOnData(nn.Module):
    """A loop whose trip count depends on the data."""

    def __init__(self):
        super().__init__()
        self.stem, self.step = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh())

    def forward(self, x):
        x, steps = self.stem(x), 0
        while x.norm() < 12 and steps < 5:
            x, steps = x + self.step(x), steps + 1
        return x


@architecture("adaptive_computation_time", floats((4, 8)), tags={"data"})
class AdaptiveComputation(nn.Module):
    """Halting probabilities accumulate until all items are done, then `break`."""

    def __init__(self):
        super().__init__()
        self.cell, self.halt = nn.GRUCell(8, 8), nn.Linear(8, 1)

    def forward(self, x):
        state, total, out = torch.zeros_like(x), x.new_zeros(len(x), 1), 0.0
        for _ in range(6):
            state = self.cell(x, state)
            share = torch.minimum(self.halt(state).sigmoid(), 1 - total)
            total, out = total + share, out + share * state
            if bool((total > 0.9).all()):
                break
        return out


@architecture("iterate_tensor", floats((3, 8)), tags={"iteration"})
class IterateTensor(nn.Module):
    """`for row in x`, `enumerate`, unpacking, `unbind` and `chunk`."""

    def __init__(self):
        super().__init__()
        self.fc, self.rows = nn.Linear(8, 8), nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        rows = [self.rows[i](row) for i, row in enumerate(self.fc(x))]
        first, *_ = rows
        left, right = torch.stack(rows).chunk(2, dim=1)
        return torch.cat([left * right, sum(left.unbind(0)) + first[:4][None]])


@architecture("len_and_int", floats((3, 8)), tags={"shapes"})
class LenAndInt(nn.Module):
    """`len(x)`, `int(x.shape[0])`, and arithmetic on them."""

    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.fc(x) / len(x)
        return self.head(x.reshape(int(x.shape[0]), -1)) * float(x.size(1)) ** -0.5


@architecture("loop_over_size", floats((2, 5, 8)), tags={"shapes"})
class LoopOverSize(nn.Module):
    """`for t in range(x.size(1))` with list appends and `torch.stack`."""

    def __init__(self):
        super().__init__()
        self.fc, self.mix = nn.Linear(8, 8), nn.Linear(16, 8)

    def forward(self, x):
        state, states = torch.zeros(x.size(0), 8), []
        for t in range(x.size(1)):
            state = torch.tanh(self.mix(torch.cat([self.fc(x[:, t]), state], dim=-1)))
            states.append(state)
        return torch.stack(states, dim=1)


@architecture("shape_branch_and_asserts", floats((2, 3, 8)), tags={"shapes"})
class ShapeBranch(nn.Module):
    """`if x.dim() == 3`, `assert`, a formatted message, `x.dtype` and `x.is_cuda` tests."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        assert x.shape[-1] == self.fc.in_features, f"8 features expected, got {x.shape[-1]}"
        if x.is_cuda or x.dtype != torch.float32:
            raise TypeError(f"float32 on CPU expected, got {x.dtype}")
        batched = x.dim() == 3
        x = x if batched else x.unsqueeze(0)
        return self.fc(x).mean(1) if batched else self.fc(x)[0]


@architecture("item_assignment", floats((4, 8)), tags={"mutation"})
class ItemAssignment(nn.Module):
    """`x[:, 0] = ...`, `x[mask] = ...`, `x += ...` on intermediate tensors."""

    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = self.fc(x)
        x[:, 0] = 1.0
        x[:, 1:3] = x[:, 3:5].detach() * 2
        x[x > 1.5] = 0.0
        x += 0.5
        out = torch.zeros_like(x)
        out[:, ::2] = self.head(x)[:, ::2]
        return out


@architecture("in_place_ops", floats((4, 8)), tags={"captured", "mutation"})
class InPlaceOps(nn.Module):
    """`relu_`, `inplace=True`, `masked_fill_`, `add_` chains."""

    def __init__(self):
        super().__init__()
        self.fc, self.act, self.head = nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 8)

    def forward(self, x):
        x = self.act(self.fc(x).add_(1))
        x = self.head(x).mul(2)
        return x.masked_fill_(x < -1, -1.0).tanh_()


@architecture("early_return", floats((4, 8)), tags={"data"})
class EarlyReturn(nn.Module):
    """Early exit when confident: `return` in the middle of a loop over blocks."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.exits = nn.ModuleList(nn.Linear(8, 4) for _ in range(3))

    def forward(self, x):
        for block, leave in zip(self.blocks, self.exits, strict=True):
            x = torch.relu(block(x))
            logits = leave(x)
            if logits.softmax(-1).max() > 0.45:
                return logits
        return logits


@architecture("recursion_tree", floats((4, 8)), tags={"captured"})
class Tree(nn.Module):
    """A tree-structured module that builds and calls itself recursively."""

    def __init__(self, depth=2):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.left = Tree(depth - 1) if depth else None
        self.right = Tree(depth - 1) if depth else None

    def forward(self, x):
        x = torch.tanh(self.fc(x))
        return x if self.left is None else self.left(x) + self.right(x)


@architecture("recursion_on_data", floats((4, 8)), tags={"data"})
class RecursionOnData(nn.Module):
    """`self(x / 2)` until the norm is small: a module that calls itself."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x, depth=0):
        if depth < 4 and x.norm() > 3:
            return self(x / 2, depth + 1) + x
        return self.fc(x)


@architecture("try_except", floats((4, 8)), tags={"exceptions"})
class TryExcept(nn.Module):
    """An attempt that fails, caught, and `finally`."""

    def __init__(self):
        super().__init__()
        self.wide, self.fc, self.tries = nn.Linear(9, 8), nn.Linear(8, 8), 0

    def forward(self, x):
        try:
            return self.wide(x)
        except RuntimeError:
            return self.fc(x)
        finally:
            x = None


@architecture("item_and_tolist", floats((4, 8)), tags={"data"})
class ItemAndTolist(nn.Module):
    """`.item()`, `.tolist()`, `float()` and indexing modules by data."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.gate = nn.Linear(8, 3)

    def forward(self, x):
        choices = self.gate(x).argmax(-1).tolist()
        rows = [self.experts[k](row) for k, row in zip(choices, x, strict=True)]
        return torch.stack(rows) * (1 + x.detach().abs().max().item()) + float(x.detach().mean())


@architecture("boolean_masks", floats((6, 8)), tags={"data-shapes"})
class BooleanMasks(nn.Module):
    """`x[mask]`, `nonzero`, `torch.where`: shapes that depend on the data."""

    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        mask = self.fc(x).sum(-1) > 0
        chosen = self.head(x[mask])
        out = x.new_zeros(x.shape[0], 4)
        out[mask] = chosen
        return torch.where(mask[:, None], out, self.head(x)), mask.nonzero()


@architecture("isinstance_branch", floats((2, 4, 6, 6)), tags={"isinstance"})
class IsinstanceBranch(nn.Module):
    """DenseNet style: a layer takes a tensor or a list of tensors."""

    class Layer(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.conv = nn.Conv2d(channels, 4, 3, padding=1)

        def forward(self, x):
            features = [x] if isinstance(x, torch.Tensor) else x
            return torch.relu(self.conv(torch.cat(features, 1)))

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(self.Layer(4 * (i + 1)) for i in range(3))

    def forward(self, x):
        features = [x]
        for layer in self.layers:
            features.append(layer(features if len(features) > 1 else x))
        return torch.cat(features, 1)


@architecture("getattr_dispatch", floats((4, 8)), tags={"captured"})
class GetattrDispatch(nn.Module):
    """Methods, layers and activations found by name."""

    def __init__(self):
        super().__init__()
        self.plan = ["linear", "norm"]
        for name in self.plan:
            setattr(self, f"{name}_0", nn.Linear(8, 8) if name == "linear" else nn.LayerNorm(8))

    def run_linear(self, x):
        return self.linear_0(x)

    def run_norm(self, x):
        return getattr(self, "norm_0")(x)  # noqa: B009

    def forward(self, x):
        for name in self.plan:
            x = getattr(torch, "tanh")(getattr(self, f"run_{name}")(x))  # noqa: B009
        return x


@architecture("switch_attributes", floats((4, 8)), tags={"captured"})
class SwitchAttributes(nn.Module):
    """Branches on plain Python settings: flags, strings, counts, a `None` layer."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.mode, self.repeat = nn.Linear(8, 8), None, "add", 2

    def forward(self, x):
        for _ in range(self.repeat):
            y = self.fc(x)
            if self.norm is not None:
                y = self.norm(y)
            x = x + y if self.mode == "add" else x * y
        return x


@architecture("grad_mode_branch", floats((4, 8)), tags={"grad-mode"})
class GradModeBranch(nn.Module):
    """`torch.is_grad_enabled()` and `x.requires_grad` decide."""

    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        if torch.is_grad_enabled() and x.requires_grad:
            x = x * 2
        return self.head(torch.relu(self.fc(x)))


@architecture("deep_equilibrium", floats((4, 8)), tags={"data", "grad-mode"})
class DeepEquilibrium(nn.Module):
    """A fixed point sought under `no_grad`, then one differentiable step."""

    def __init__(self):
        super().__init__()
        self.inject, self.cell = nn.Linear(8, 8), nn.Linear(8, 8)

    def step(self, z, x):
        return torch.tanh(0.5 * self.cell(z) + self.inject(x))

    def forward(self, x):
        z = torch.zeros_like(x)
        with torch.no_grad():
            for _ in range(10):
                z, last = self.step(z, x), z
                if (z - last).norm() < 1e-2:
                    break
        return self.step(z, x)


@architecture("mixture_of_experts_routed", floats((6, 8)), tags={"data"})
class MixtureOfExperts(nn.Module):
    """Top-1 routing: each expert sees only its tokens, empty experts are skipped."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(8, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(4)
        )

    def forward(self, x):
        weight, choice = self.gate(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            rows = torch.where(choice == k)[0]
            if rows.numel():
                out.index_add_(0, rows, weight[rows, None] * expert(x[rows]))
        return out


@architecture("mixture_of_experts_dense", floats((6, 8)), tags={"captured"})
class DenseMixture(nn.Module):
    """Soft routing: all experts run, `topk` masks the gate."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        values, index = self.gate(x).topk(2, dim=-1)
        gate = torch.zeros_like(self.gate(x)).scatter(-1, index, values.softmax(-1))
        return torch.einsum("bk,kbd->bd", gate, torch.stack([e(x) for e in self.experts]))


@architecture("scalar_overloads", floats((4, 8)), tags={"captured"})
class ScalarOverloads(nn.Module):
    """Functions that take a number where others take a tensor look at what they get."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = torch.tanh(0.8 * (self.fc(x) + 0.04 * torch.pow(x, 3.0)))
        y = torch.pow(
            x.amax(0, keepdim=True)[0],
            2,
        ) + power(2.0, self.fc.bias)
        return torch.where(x > 0, torch.remainder(x, 0.5), 0.1) + torch.fmod(y, 2.0)


@architecture("jit_isinstance", floats((4, 8)), tags={"isinstance"})
class JitIsinstance(nn.Module):
    """Asks for a type through torch, as code for TorchScript does."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 8)

    def forward(self, x, skip=None):
        if skip is None and torch.jit.isinstance(x, torch.Tensor) and torch.is_tensor(x):
            x = torch.cat([x, -x], 1)
        return self.fc(x)


@architecture("legacy_tensor_type", floats((4, 8)), tags={"isinstance"})
class LegacyTensorType(nn.Module):
    """Asks for a type that stands for a dtype and a device too."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = self.fc(x)
        return x * 2 if isinstance(x, torch.FloatTensor) else x
