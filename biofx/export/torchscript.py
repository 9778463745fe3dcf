"""TorchScript: the default format. Deprecated upstream, so all of it stays in this file."""

import inspect
import warnings
from pathlib import Path

import torch
from torch import nn

from biofx.errors import ExportError
from biofx.export.check import check
from biofx.export.plain import Arguments, plain_copy
from biofx.passes.fold import FoldReport
from biofx.passes.inline import PATH
from biofx.transform import info


def write(bio: nn.Module, path: Path, arguments: Arguments | None, fold: bool) -> FoldReport | None:
    """Script a transformed model and save it.

    Modules that biofx could not trace are compiled by TorchScript from the user's own code, with
    its control flow. They are never traced with example inputs, which would keep one branch of
    each `if` and lose the others.

    Raises:
        ExportError: TorchScript cannot compile a module, which the message names.
    """
    scripted, report = _script(bio, arguments, fold)
    try:
        torch.jit.save(scripted, path)
    except RuntimeError as error:
        raise ExportError(_why_not_saved(error)) from error
    if arguments is not None:
        loaded = torch.jit.load(path, map_location=None)
        check(bio, loaded, arguments, folded=report is not None and report.changed)
    return report


def _script(
    bio: nn.Module, arguments: Arguments | None, fold: bool
) -> tuple[torch.jit.ScriptModule, FoldReport | None]:
    failure: tuple[nn.Module, Exception] | None = None
    # Graphs compile more often than Python forwards; but Python code above may want more of a
    # module than to call it (slices of a Sequential, its methods).
    for islands in (True, False):
        model, report = plain_copy(bio, fold=fold, arguments=arguments, islands=islands)
        _refuse_what_would_be_lost(model)
        try:
            return _compile(model), report
        except Exception as error:  # the compiler raises errors of many kinds
            failure = failure or (model, error)
    assert failure is not None
    raise ExportError(_explain(bio, *failure)) from failure[1]


def _refuse_what_would_be_lost(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.fx.GraphModule | torch.jit.ScriptModule):
            continue
        for base in type(module).__mro__:
            if base not in (nn.Module, object) and "__call__" in vars(base):
                raise ExportError(
                    f"{_called(name, module)} overrides __call__, which TorchScript does not run; "
                    "move that code into forward"
                )
        if type(module).__module__.startswith("torch."):
            continue
        for parameter in inspect.signature(type(module).forward).parameters.values():
            if parameter.default is None and parameter.annotation is parameter.empty:
                raise ExportError(
                    f"{_called(name, module)} has a parameter {parameter.name!r} with the default "
                    "None and no type, which TorchScript takes for a tensor; annotate it: "
                    f"`{parameter.name}: Optional[Tensor] = None`"
                )


def _why_not_saved(error: RuntimeError) -> str:
    text = str(error).strip().splitlines()[0]
    if "undefined Tensor" in text:
        return (
            "TorchScript cannot save the model: a parameter of a Python function has the default "
            "None but no type, which TorchScript takes for a tensor; annotate it, "
            "`mask: Optional[Tensor] = None`"
        )
    return f"TorchScript cannot save the model: {text}; take what cannot be saved out of it"


def _explain(bio: nn.Module, model: nn.Module, error: Exception) -> str:
    name, module, error = _culprit(model, error)
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    said = " ".join(lines[:2] if lines[0].endswith(":") and len(lines) > 1 else lines[:1])
    said = (_made(module, said) or said).rstrip(".:")[:300]
    marks = [i for i, line in enumerate(lines) if line.endswith("<--- HERE")]
    code = lines[marks[0] - 1] if marks else ""
    where = f", at `{code}`" if code else ""
    reason = info(bio).opaque.get(name)
    stays = f" Its forward stays Python: {reason}." if reason else ""
    inside = _inside(module, code)
    return (
        f"TorchScript cannot compile {_called(name, module)}: {said}{where}"
        f"{inside}.{stays} Write that code in what TorchScript supports "
        "(https://docs.pytorch.org/docs/stable/jit_language_reference.html), or take it out of the "
        "model before exporting"
    )


def _made(module: nn.Module, said: str) -> str | None:
    """What a graph makes whose `__init__` was generated and has no source: a dataclass."""
    for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
        made = node.target
        if isinstance(made, type) and f"<function {made.__qualname__}.__init__ at" in said:
            where = node.meta.get(PATH) or "the model"
            return (
                f"{where} makes an object of the class {made.__module__}.{made.__qualname__}, "
                "whose __init__ TorchScript finds no source for; let it be a NamedTuple, a tuple "
                "or a dict"
            )
    return None


def _inside(module: nn.Module, code: str) -> str:
    """Which of the inlined modules a line of a generated forward comes from."""
    if isinstance(module, torch.fx.GraphModule):
        result = code.partition(" ")[0].rstrip(";")
        for node in module.graph.nodes:
            if node.name == result and node.meta.get(PATH):
                return f", in {node.meta[PATH]!r}"
    return ""


def _culprit(model: nn.Module, error: Exception) -> tuple[str, nn.Module, Exception]:
    """The smallest module that does not compile, and its error."""
    for name, module in reversed(list(model.named_modules())):
        if not name or type(module).forward is nn.Module.forward:
            continue
        try:
            _compile(module)
        except Exception as own:
            return name, module, own
    return "", model, error


def _compile(model: nn.Module) -> torch.jit.ScriptModule:
    try:
        with warnings.catch_warnings():
            if all(type(module).__module__.startswith("torch.") for module in model.modules()):
                # about annotations in the code of fx.GraphModule, which no user can change
                warnings.filterwarnings("ignore", message=".* instance-level annotations")
            scripted: torch.jit.ScriptModule = torch.jit.script(model)
    except Exception:
        # A class that failed to compile stays in the compiler's memory half made; the next attempt
        # would fail for that reason alone.
        torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()
        raise
    return scripted


def _called(name: str, module: nn.Module) -> str:
    return f"{name!r} ({type(module).__name__})" if name else f"the model ({type(module).__name__})"
