"""`transform`: capture, passes, record. The only place that composes them."""

import dataclasses
import difflib
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from biofx.capture import Assumption, Captured, arguments_of, capture
from biofx.config import BioConfig
from biofx.copying import clone
from biofx.errors import ModelError
from biofx.garbage import uncollected
from biofx.modules.graph_module import graph_of, install
from biofx.modules.graphs import copied
from biofx.passes import PASSES, TransformContext, module_names
from biofx.synapses import Layer, Record, Synapses, Wiring, original_class, record_of, unwrap
from biofx.synapses.record import RECORD

if TYPE_CHECKING:
    from biofx.diff import GraphDiff


M = TypeVar("M", bound=nn.Module)


def transform(
    model: M,
    config: BioConfig | None = None,
    *,
    example_inputs: Any = None,
    inplace: bool = False,
) -> M:
    """Give a model the plasticity of synapses.

    The result runs the model's own forward. Its weight layers are replaced by bio-augmented ones
    over the same parameters, split where the configuration asks for it; without splitting it
    computes bit for bit what the model computes, in any mode, for any arguments. Its graph
    describes that forward. Train it with `GradScheduler`, look at it with `diff`.

    Args:
        model: any module that runs.
        config: settings; `BioConfig()` if not given.
        example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments or
            a pair (tuple, dict) of both. With it, a copy of the model runs on them once: its graph
            is whole, and so the wiring is known. Without, the forward is traced as far as that
            goes.
        inplace: change `model` itself instead of making new modules around its parameters.

    Returns:
        A `torch.fx.GraphModule` of the model's own class with the same state-dict keys, which
        shares the model's parameters and buffers. (No GraphModule where the class or the model
        has an attribute of its own that a GraphModule uses, `graph`, `code` or `meta`, say;
        `info(bio).graph` has the graph then too.)

    Raises:
        ModelError: not a module, nothing to transform, un-materialised lazy layers, already
            transformed, it does not run on the example inputs, or something on it works on its
            modules in a way that a copy cannot take over.
        ConfigError: the configuration does not fit the model.

    Warns:
        UserWarning: a glob of `overrides`, `include`, `exclude` or `outputs` matches no weight
            layer, or what is set for a layer does not act, as its weight is that of another.
    """
    config = BioConfig() if config is None else config
    _check(model, config, inplace)
    arguments = arguments_of(example_inputs)
    # What is made here is to be trained.
    with torch.inference_mode(False), uncollected():
        captured = capture(model, arguments)
        graph = copied(captured.graph) if inplace else None
        bio = _rewrite(clone(model, strict=not inplace), config, captured)
        unmatched = record_of(bio).unmatched
        if unmatched:
            warnings.warn(
                f"no weight layer of {type(model).__name__} matches {', '.join(unmatched)}; what "
                "is set there has no effect",
                UserWarning,
                stacklevel=2,
            )
        for message in _shared(bio, config):
            warnings.warn(message, UserWarning, stacklevel=2)
        if graph is not None:  # errors have left `model` as it was
            return _rewrite(model, config, dataclasses.replace(captured, graph=graph))
        return bio


def _rewrite(target: M, config: BioConfig, captured: Captured) -> M:
    context = TransformContext(config, captured, module_names(target))
    for make in PASSES:
        make(context)(target)  # type: ignore[arg-type]
    install(target, captured)
    target.__dict__[RECORD] = Record(
        config=config,
        layers=context.layers,
        synapses=context.synapses,
        opaque=dict(sorted(captured.opaque.items())),
        assumptions=(*captured.assumptions, *context.assumptions),
        wiring=context.wiring,
        whole=captured.whole,
        training=captured.training,
        unmatched=tuple(_unmatched(context)),
    )
    return target


def _check(model: nn.Module, config: BioConfig, inplace: bool) -> None:
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise ModelError(f"{model.__name__} is a class; pass an instance, e.g. {model.__name__}()")
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            f"a {type(model).__name__} is compiled code, which cannot be captured; transform the "
            "Python model that it was made from, and write the result with biofx.export"
        )
    if not isinstance(config, BioConfig):
        hint = ""
        if isinstance(config, torch.Tensor | tuple | list):
            hint = "; name what is no configuration: transform(model, example_inputs=...)"
        elif isinstance(config, str | os.PathLike):
            hint = "; a file is read by BioConfig.from_toml(path)"
        elif isinstance(config, Mapping):
            hint = "; give BioConfig(**settings)"
        raise ModelError(f"config must be a BioConfig, got {type(config).__name__}{hint}")
    if not isinstance(inplace, bool):
        raise ModelError(f"inplace must be True or False, got {type(inplace).__name__}")
    if hasattr(model, RECORD):
        raise ModelError(
            "this model was made by biofx.transform already; transform the original again, or "
            "use biofx.info to see what was done"
        )
    if hasattr(model, "_orig_mod") or isinstance(model, nn.parallel.DistributedDataParallel):
        raise ModelError(
            f"this model is wrapped in {type(model).__name__}; transform the model first and wrap "
            "the result"
        )
    lazy = [
        name or "(the model)"
        for name, module in model.named_modules()
        if any(
            is_lazy(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())
        )
    ]
    if lazy:
        raise ModelError(
            f"lazy layers have no weights yet: {', '.join(lazy[:5])}"
            + (f" and {len(lazy) - 5} more" if len(lazy) > 5 else "")
            + "; run the model once on real input, then transform it"
        )


def _shared(bio: nn.Module, config: BioConfig) -> Iterator[str]:
    """What is set for layers whose weights go by the settings of others, in words."""
    record, modules = record_of(bio), dict(bio.named_modules())
    owners = {}
    for parameter_name, synapses in record.synapses.items():
        owner, _, key = parameter_name.rpartition(".")
        owners[id(modules[owner]._parameters[key])] = synapses
    for name in record.layers:
        for key, parameter in modules[name]._parameters.items():
            entry = owners.get(id(parameter))
            if entry is None or entry.layers[0] == name:
                continue
            which, first = f"the {key} of {name} is that of {entry.layers[0]}", entry.layers[0]
            if not config.selects(name):
                yield f"{name} is excluded, but {which}, which carries plasticity; exclude both"
            # Each layer is split by its own Γ.
            elif entry.config != config.for_layer(name).replace(
                weight_splitting_Gamma=entry.config.weight_splitting_Gamma
            ):
                yield f"{which}, so the settings of {first} hold and those of {name} do not"


def _unmatched(context: TransformContext) -> Iterator[str]:
    """The globs of the configuration that select nothing, each with what may have been meant."""
    config, layers = context.config, list(context.layers)
    # To exclude what carries no weight layer is to say what is so already.
    bare = [name for module, name in context.names.items() if not module._modules]
    known_by = {"overrides": layers, "include": layers, "exclude": layers + bare, "outputs": layers}
    for field, known in known_by.items():
        for glob in getattr(config, field):
            if any(fnmatchcase(name, glob) for name in known):
                continue
            inside = any(name.startswith(f"{glob}.") for name in layers)
            close = [f"{glob}.*"] if inside else difflib.get_close_matches(glob, layers, n=1)
            yield f"{field} {glob!r}" + (f" (did you mean {close[0]!r}?)" if close else "")


@dataclass(frozen=True, repr=False)
class Transformation:
    """What `transform` did to a model.

    Attributes:
        model: the transformed model, without wrappers.
        config: the configuration given.
        layers: {layer name: Layer} of every module with weights: augmented, split or skipped.
        opaque: {module name: reason} of what could not be traced without example inputs; "" is the
            model itself.
        synapses: {parameter name: Synapses}; a tied parameter appears once.
        assumptions: what the graph and the passes take for granted; each has a `kind`, the text
            `what`, and `where` (file and line).
        wiring: which layer feeds which, as far as that is known.
        whole: every operation of a run is in the graph (example inputs were given).
        training: whether the model was captured in training mode.
    """

    model: nn.Module
    config: BioConfig
    layers: Mapping[str, Layer]
    opaque: Mapping[str, str]
    synapses: Mapping[str, Synapses]
    assumptions: tuple[Assumption, ...]
    wiring: Wiring
    whole: bool
    training: bool

    @property
    def graph(self) -> fx.Graph:
        """The flat graph of the whole model, as rewritten."""
        return graph_of(self.model)

    @property
    def weights_in_graphs(self) -> float:
        """Share of the entries of matrices that carry synapses and stand in the graph, 0 to 1."""
        shown = {
            parameter
            for name in self.wiring.order
            if name in self.layers
            for parameter in self.layers[name].parameters
        }
        sizes = {id(p): p.numel() for p in self.model.parameters() if p.ndim >= 2}
        found = sum(self.model.get_parameter(name).numel() for name in shown)
        return found / (sum(sizes.values()) or 1)

    def __repr__(self) -> str:
        layers = ", ".join(f"{count:,} {action}" for action, count in self.diff.layers.items())
        wiring = "known" if self.wiring.known else f"unknown for {len(self.wiring.unknown):,}"
        name = ascii(original_class(self.model).__name__)[1:-1]
        return f"<Transformation of {name}: layers: {layers}; wiring {wiring}; see .diff>"

    def _repr_html_(self) -> str:
        return self.diff._repr_html_()

    @property
    def diff(self) -> "GraphDiff":
        """The rewritten graph as a diff; the same as `biofx.diff(model)`."""
        from biofx.diff import diff

        return diff(self.model)


def info(model: nn.Module) -> Transformation:
    """What `transform` did to this model (wrapped or not).

    Raises:
        ModelError: the model was not made by `biofx.transform`.
    """
    record = record_of(model)
    names = ("config", "layers", "opaque", "synapses", "assumptions", "wiring", "whole", "training")
    return Transformation(unwrap(model), **{name: getattr(record, name) for name in names})
