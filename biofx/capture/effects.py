"""What a forward may do to something that outlives its call, and no graph can hold.

All of it is refused before it takes effect, so that nothing has to be undone: neither the original
model, which shares its tensors with what is traced, nor the process is changed by a capture.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

from torch import nn

_SEEDS = "manual_seed seed set_rng_state"
_CUDA_SEEDS = f"{_SEEDS} manual_seed_all seed_all set_rng_state_all"
# Functions that set a mode of the process, seed a generator, or change a module.
FUNCTIONS = {module: names.split() for module, names in {
    "torch": f"""{_SEEDS} set_default_dtype set_default_device set_default_tensor_type
        use_deterministic_algorithms set_deterministic_debug_mode set_num_threads
        set_num_interop_threads set_float32_matmul_precision set_flush_denormal set_warn_always
        set_anomaly_enabled set_autocast_enabled set_autocast_dtype
        set_autocast_cache_enabled""",
    "torch.random": f"{_SEEDS} fork_rng thread_safe_generator",
    "torch.cuda": f"{_CUDA_SEEDS} set_device",
    "torch.cuda.random": _CUDA_SEEDS,
    "torch.autograd": "set_detect_anomaly detect_anomaly set_multithreading_enabled",
    "torch.nn.attention": "sdpa_kernel",
    "torch.func": "functional_call",
    "torch.nn.utils.stateless": "functional_call _reparametrize_module",
    "torch.nn.utils.parametrize": "cached register_parametrization remove_parametrizations",
    "torch.nn.utils": "weight_norm remove_weight_norm spectral_norm remove_spectral_norm",
    "torch.nn.modules.module": """register_module_forward_hook register_module_forward_pre_hook
        register_module_backward_hook register_module_full_backward_hook
        register_module_full_backward_pre_hook register_module_buffer_registration_hook
        register_module_module_registration_hook register_module_parameter_registration_hook""",
    "random": "seed setstate",
    "numpy.random": "seed set_state",
}.items()}  # fmt: skip
_METHODS = {
    *(name for name in vars(nn.Module) if name.lstrip("_").startswith("register_")),
    "add_module", "set_submodule", "set_extra_state", "load_state_dict", "_load_from_state_dict",
    "_apply", "apply", "cuda", "ipu", "xpu", "mtia", "cpu", "type", "float", "double", "half",
    "bfloat16", "to", "to_empty", "share_memory", "train", "eval", "requires_grad_", "zero_grad",
    "compile",
}  # fmt: skip
# Methods of `nn.Module` that change the module; told apart from a user's own by where they stand.
CHANGES = frozenset(name for name in _METHODS if hasattr(nn.Module, name))
REGISTRIES = ("_modules", "_parameters", "_buffers")
HOOKS = frozenset(name for name, value in vars(nn.Module()).items() if type(value) is OrderedDict)
HELD = frozenset({*REGISTRIES, *HOOKS})  # attributes of a module that are such dicts
_MUTATORS = (
    "__setitem__", "__delitem__", "__ior__", "clear", "pop", "popitem", "setdefault", "update",
)  # fmt: skip


def functions(module: str) -> Iterator[tuple[str, Any]]:
    """The functions of a Python module, by name, that a forward which is traced must not call."""
    names = vars(sys.modules[module])
    return ((name, names[name]) for name in FUNCTIONS[module] if name in names)


def is_of_torch(method: Any) -> bool:
    """Whether a method named in `CHANGES` is torch's, and not a user's of the same name."""
    function = getattr(method, "__func__", method)
    return isinstance(function, FunctionType) and function.__module__.startswith(
        ("torch.", "biofx.")
    )


def changes_module(function: FunctionType) -> bool:
    """Whether a function is a method of `nn.Module` that changes the module."""
    name = function.__name__
    return name in CHANGES and vars(nn.Module).get(name) is function


class Held(dict[str, Any]):
    """What a module holds (parameters, children, hooks), as the code of a forward may look at it.

    A copy of the dict, for the dict itself would let itself be changed without a word.
    """

    def __init__(self, name: str, held: dict[str, Any], refuse: Callable[[str], Exception]) -> None:
        super().__init__(held)
        self._what = f"changes {name} of a module"
        self._refuse = refuse


def _refuse(self: Held, *args: Any, **kwargs: Any) -> Any:
    raise self._refuse(self._what)


# Ways to change a module's children and parameters that lead through no method of `nn.Module`.
ITEMS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.Sequential, "insert"), (nn.Sequential, "__delitem__"),
    (nn.ModuleList, "insert"), (nn.ModuleList, "__delitem__"),
    (nn.ModuleDict, "clear"), (nn.ModuleDict, "__delitem__"),
    (nn.ParameterDict, "__setitem__"), (nn.ParameterDict, "__delitem__"),
)  # fmt: skip
for _name in _MUTATORS:
    setattr(Held, _name, _refuse)
