"""Bake: what only training needs becomes what it is now, in a model that is about to leave."""

from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from biofx.errors import ExportError


def bake(model: nn.Module) -> None:
    """Take from a plain model, in place, what only training needs.

    Backward hooks go. A weight that is computed from others at every call (parametrizations,
    weight and spectral norm, pruning masks, `max_norm` of an embedding) becomes what it is now.

    Args:
        model: in evaluation mode, with tensors of its own.

    Raises:
        ExportError: an embedding with `max_norm` shares its weight.
    """
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for registry in (module._backward_hooks, module._backward_pre_hooks):
            registry.clear()
        _bake(module)
        _bake_hooks(module)
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            if uses[id(module.weight)] > 1:
                raise ExportError(
                    f"{name!r} changes its weight in forward (max_norm), and shares it with "
                    "another module; set max_norm to None before exporting"
                )
            _bake_norm(module)


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
