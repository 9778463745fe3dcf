"""Strip: plain classes again, in a model that is about to leave."""

from collections import Counter

import torch
from torch import Tensor, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from biofx.capture import Captured
from biofx.errors import ExportError
from biofx.passes.split import _load_plain_weight
from biofx.synapses import Derived, original_class
from biofx.synapses.classes import OURS
from biofx.synapses.layers import count_activity


class Strip(PassBase):
    """Puts back the user's own classes, in a copy of a transformed model.

    Runs after inline. Bio-augmented layers become layers of the user's class; activity counts,
    hooks of biofx and everything that only training needs (backward hooks, parametrizations) go.
    A weight that is computed from others at every call becomes the weight that it is now.
    """

    def requires(self, graph_module: nn.Module) -> None:
        assert not isinstance(graph_module, Captured), "inline runs before strip"

    def call(self, graph_module: nn.Module) -> PassResult:
        uses = Counter(id(p) for _, p in graph_module.named_parameters(remove_duplicate=False))
        for name, module in list(graph_module.named_modules()):
            if isinstance(module, torch.jit.ScriptModule):
                continue
            if isinstance(module, Derived):
                undress(module)
            _drop_hooks(module)
            _bake(module)
            _bake_hooks(module)
            if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
                if uses[id(module.weight)] > 1:
                    raise ExportError(
                        f"{name!r} changes its weight in forward (max_norm), and shares it with "
                        "another module; set max_norm to None before exporting"
                    )
                _bake_norm(module)
        return PassResult(graph_module, True)

    def ensures(self, graph_module: nn.Module) -> None:
        for module in graph_module.modules():
            assert not isinstance(module, Derived)


def undress(module: nn.Module) -> None:
    """Give a module its user's class back, and take from it what `transform` left."""
    if "activity" in module._buffers and "_unit_axis" in module.__dict__:
        del module._buffers["activity"]
        module._non_persistent_buffers_set.discard("activity")
    captured = isinstance(module, Captured)
    module.__class__ = original_class(module)
    for key in OURS:
        if captured or key not in ("meta", "shape_env"):
            module.__dict__.pop(key, None)


def _drop_hooks(module: nn.Module) -> None:
    for key, hook in list(module._forward_hooks.items()):
        if hook is count_activity:
            del module._forward_hooks[key]
    for registry in (module._backward_hooks, module._backward_pre_hooks):
        registry.clear()
    for key, hook in list(module._load_state_dict_pre_hooks.items()):
        if getattr(hook, "hook", hook) is _load_plain_weight:
            del module._load_state_dict_pre_hooks[key]


def _bake(module: nn.Module) -> None:
    """Replace a parametrized weight by its present value; the parameters behind it stay."""
    if not parametrize.is_parametrized(module):
        return
    values = {}
    with torch.no_grad():
        for name in module.parametrizations:  # type: ignore[union-attr]
            value: Tensor = getattr(module, name)
            values[name] = nn.Parameter(value.clone(), requires_grad=False)
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]  # torch derives one class for each such module
    for name, parameter in values.items():
        module.register_parameter(name, parameter)


_WEIGHT_HOOKS = (WeightNorm, SpectralNorm, prune.BasePruningMethod)


def _bake_hooks(module: nn.Module) -> None:
    """The same for weights that a hook of `torch.nn.utils` computes before every forward."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if not isinstance(hook, _WEIGHT_HOOKS):
            continue
        name = hook._tensor_name if isinstance(hook, prune.BasePruningMethod) else hook.name
        with torch.no_grad():
            hook(module, ())
            value = getattr(module, name).detach().clone()
        module.__dict__.pop(name, None)
        del module._forward_pre_hooks[key]
        for registry in (module._parameters, module._buffers):
            for held in list(registry):
                if held.startswith(f"{name}_"):
                    del registry[held]
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def _bake_norm(module: nn.Embedding | nn.EmbeddingBag) -> None:
    """Limit the norms of all rows now. TorchScript compiles the limit away, without a word."""
    with torch.no_grad():
        weight = module.weight.detach().clone()
        rows = torch.arange(len(weight), device=weight.device)
        assert module.max_norm is not None
        torch.embedding_renorm_(weight, rows, module.max_norm, module.norm_type)
    module.weight = nn.Parameter(weight, requires_grad=False)
    module.max_norm = None
