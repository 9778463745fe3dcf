"""`transform`: capture, passes, record. The only place that composes them."""

import difflib
import gc
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from biofx.capture import Session, clone, install
from biofx.capture.shapes import record_shapes
from biofx.capture.signature import split_inputs
from biofx.config import BioConfig
from biofx.errors import ModelError
from biofx.passes import PASSES, Draft, islands
from biofx.synapses import Cell, Layer, Record, Synapses, record_of, unwrap, watch
from biofx.synapses.record import RECORD

if TYPE_CHECKING:
    from biofx.diff import GraphDiff


def transform(
    model: nn.Module,
    config: BioConfig | None = None,
    *,
    example_inputs: Any = None,
    inplace: bool = False,
) -> nn.Module:
    """Give a model the plasticity of synapses.

    The model is captured as `torch.fx` graphs, one per module; its weight layers are replaced by
    bio-augmented ones, split where the configuration asks for it. Without splitting the result
    computes bit for bit what the model computes, in training and in evaluation. Train it with
    `GradScheduler`, look at it with `diff`.

    Args:
        model: any module that runs. Modules that cannot be traced stay Python, each with a
            reason in `info(bio).opaque`; their children are captured on their own.
        config: settings; `BioConfig()` if not given.
        example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments or
            a pair (tuple, dict) of both. With it, the model is captured for that pattern of
            arguments, and the diff shows shapes. The model is run once, in evaluation mode, on
            fake tensors; where those do not do, on a copy of the inputs.
        inplace: change `model` itself instead of making new modules around its parameters.

    Returns:
        A module of the model's own class with the same state-dict keys, which shares the model's
        parameters and buffers; a `torch.fx.GraphModule` too wherever its forward can be traced.

    Raises:
        ModelError: not a module, nothing to transform, un-materialised lazy layers, already
            transformed, or it does not run on the example inputs.
        ConfigError: the configuration does not fit the model.

    Warns:
        UserWarning: a glob of `overrides`, `include` or `exclude` matches no weight layer.
    """
    config = BioConfig() if config is None else config
    _check(model, config)
    arguments = split_inputs(example_inputs)
    # What is made here is to be trained.
    with torch.inference_mode(False), _uncollected():
        bio = _transform(clone(model), config, arguments)
        unmatched = record_of(bio).unmatched
        if unmatched:
            warnings.warn(
                f"no weight layer of {type(model).__name__} matches {', '.join(unmatched)}; what "
                "is set there has no effect",
                UserWarning,
                stacklevel=2,
            )
        if inplace:  # errors have left `model` as it was
            return _transform(model, config, arguments)
        return bio


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection: what is allocated stays, and searching it is a fifth of the work."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _transform(target: nn.Module, config: BioConfig, arguments: Any) -> nn.Module:
    session = Session(target)
    session.run(arguments)
    reads: dict[nn.Module, dict[str, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    for module, capture in session.captures.items():
        install(module, capture)
        for owner, attribute in capture.reads:
            reads[owner][attribute].append(capture.cell)
    opaque = {session.names[module]: reason for module, reason in session.opaque.items()}
    held = Counter(child for module in session.names for child in module._modules.values())
    for child, times in held.items():
        if child is not None and times > 1:  # graphs call it by one name, whichever is meant
            reads.setdefault(child, defaultdict(list))
    draft = Draft(config, session, dict(sorted(opaque.items())))
    for make in PASSES:
        make(draft)(target)  # type: ignore[arg-type]
    watch(reads)
    nodes = 0
    for _, island in islands(target):
        island.recompile()
        nodes += len(island.graph.nodes)
    shapes = record_shapes(target, arguments) if arguments is not None else {}
    target.__dict__[RECORD] = _record(draft, nodes, shapes)
    return target


def _check(model: nn.Module, config: BioConfig) -> None:
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
        raise ModelError(f"config must be a BioConfig, got {type(config).__name__}")
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


def _record(
    draft: Draft, nodes: int, shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> Record:
    sizes = {
        name: sum(torch.Size(draft.synapses[p].shape).numel() for p in layer.parameters)
        for name, layer in draft.layers.items()
    }
    shown = sum(
        sizes[name]
        for name in draft.layers
        if name in draft.weights and draft.weights[name].in_graph
    )
    return Record(
        config=draft.config,
        layers=draft.layers,
        synapses=draft.synapses,
        opaque=draft.opaque,
        partly={
            draft.session.names[module]: capture.partly
            for module, capture in draft.session.captures.items()
            if capture.partly
        },
        weights_in_graphs=shown / (sum(sizes.values()) or 1),
        nodes=nodes,
        shapes=shapes,
        unmatched=tuple(_unmatched(draft)),
    )


def _unmatched(draft: Draft) -> Iterator[str]:
    """The globs of the configuration that select nothing, each with what may have been meant."""
    config, layers = draft.config, list(draft.layers)
    # To exclude what carries no weight layer is to say what is so already.
    bare = [name for module, name in draft.session.names.items() if not module._modules]
    for field, known in (("overrides", layers), ("include", layers), ("exclude", layers + bare)):
        for glob in getattr(config, field):
            if any(fnmatchcase(name, glob) for name in known):
                continue
            inside = any(name.startswith(f"{glob}.") for name in layers)
            close = [f"{glob}.*"] if inside else difflib.get_close_matches(glob, layers, n=1)
            yield f"{field} {glob!r}" + (f" (did you mean {close[0]!r}?)" if close else "")


@dataclass(frozen=True)
class Transformation:
    """What `transform` did to a model.

    Attributes:
        config: the configuration given.
        layers: {layer name: Layer} of every module with weights: augmented, split or skipped.
        opaque: {module name: reason} of the modules that stay Python; "" is the model itself.
        partly: {module name: reason} of the modules some of whose calls stay Python.
        synapses: {parameter name: Synapses}; a tied parameter appears once.
        weights_in_graphs: share of the synapses whose layer is called by a graph, 0 to 1.
        stale: {module name: reason} of graphs given up since, because a Python attribute that
            they rest on was changed; those modules run their own forward.
    """

    model: nn.Module
    config: BioConfig
    layers: Mapping[str, Layer]
    opaque: Mapping[str, str]
    partly: Mapping[str, str]
    synapses: Mapping[str, Synapses]
    weights_in_graphs: float

    @property
    def stale(self) -> dict[str, str]:
        """{module name: reason} of graphs that no longer stand."""
        return {name: reason for name, i in islands(self.model) if (reason := i.stale)}

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
    return Transformation(
        model=unwrap(model),
        config=record.config,
        layers=record.layers,
        opaque=record.opaque,
        partly=record.partly,
        synapses=record.synapses,
        weights_in_graphs=record.weights_in_graphs,
    )
