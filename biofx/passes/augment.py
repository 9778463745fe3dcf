"""Augment: weight layers become bio-augmented layers, or are skipped with a reason."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from biofx.capture import Captured
from biofx.errors import ModelError
from biofx.passes.draft import Draft, Provenance, WeightLayer, join
from biofx.synapses import (
    Axes,
    BioLayer,
    Layer,
    Synapses,
    augment,
    original_class,
    track_activity,
    wants_activity,
)

# What `DistributedDataParallel` leaves alone. It sends the buffers of one process to the others,
# which would lose what they have counted of their own batches.
_UNSENT = "_ddp_params_and_buffers_to_ignore"


class Augment(PassBase):
    """Gives every weight layer its `Synapses`: one per parameter, however many modules share it."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.counters: list[str] = []  # names of the buffers that count activity

    def requires(self, graph_module: nn.Module) -> None:
        if not self.draft.weights:
            seen = [f"{name or 'the model'}: {why}" for name, why in self.draft.ignored.items()]
            raise ModelError(
                f"{original_class(graph_module).__name__} has no weight layer that biofx knows"
                + (f" ({seen[0]})" if seen else "")
                + "; register its layer type with biofx.register, or pass a model with weights"
            )

    def call(self, graph_module: nn.Module) -> PassResult:
        draft = self.draft
        owners: dict[int, str] = {}
        for layer in draft.weights.values():
            config = draft.config.for_layer(layer.name)
            parameters = [layer.module.get_parameter(axes.parameter) for axes in layer.axes]
            reason = self._reason(layer, parameters)
            names = []
            for axes, parameter in zip(layer.axes, parameters, strict=True):
                name = join(layer.name, axes.parameter)
                owner = owners.setdefault(id(parameter), name)
                if reason is not None and not reason.startswith("frozen"):
                    continue
                names.append(owner)
                if owner in draft.synapses:
                    known = draft.synapses[owner]
                    if layer.name not in known.layers:
                        layers = (*known.layers, layer.name)
                        draft.synapses[owner] = replace(
                            known, layers=layers, output=known.output and layer.output
                        )
                    continue
                draft.synapses[owner] = Synapses(
                    parameter=name,
                    kind=axes.kind,
                    shape=tuple(parameter.shape),
                    post_axis=axes.post % parameter.ndim,
                    pre_axis=axes.pre % parameter.ndim,
                    config=config,
                    layers=(layer.name,),
                    groups=axes.groups,
                    bundles=axes.bundles,
                    depth=layer.depth,
                    rank=layer.rank,
                    ranks=len(draft.weights),
                    output=layer.output,
                )
            self._replace(layer, names, reason)
        if self.counters:
            graph_module.__dict__[_UNSENT] = [*getattr(graph_module, _UNSENT, ()), *self.counters]
        for name, reason in draft.ignored.items():
            if name not in draft.layers:
                kind = original_class(graph_module.get_submodule(name)).__name__
                draft.layers[name] = Layer(
                    name=name, old_type=kind, new_type=kind, action="skipped", reason=reason
                )
        return PassResult(graph_module, bool(draft.synapses))

    def _reason(self, layer: WeightLayer, parameters: Sequence[nn.Parameter]) -> str | None:
        if not self.draft.config.selects(layer.name):
            return "excluded by the user"
        if any(p.is_complex() for p in parameters):
            return "complex weights"
        if not all(p.is_floating_point() for p in parameters):
            return "weights are not floating-point numbers"
        if not any(p.requires_grad for p in parameters):
            return "frozen (rules act once it requires gradients)"
        return None

    def _replace(self, layer: WeightLayer, names: list[str], reason: str | None) -> None:
        old = original_class(layer.module).__name__
        whole = reason
        if names:
            synapses = tuple(self.draft.synapses[name] for name in names)
            if not isinstance(layer.module, Captured):
                augment(layer.module, synapses)
            elif _is_registered(layer.axes):
                augment(layer.module, synapses, Captured)
            if _track(layer.module, layer.axes[0], synapses[0]):
                self.counters.append(join(layer.name, "activity"))
        new = type(layer.module).__name__
        self.draft.layers[layer.name] = Layer(
            name=layer.name,
            old_type=old,
            new_type=new,
            action="augmented" if whole is None else "skipped",
            reason=whole if whole or layer.reached else "no graph calls it",
            parameters=tuple(dict.fromkeys(names)),
            depth=layer.depth,
            rank=layer.rank,
            output=layer.output,
        )
        status = "replaced" if whole is None else "skipped"
        for node in layer.nodes:
            node.meta["biofx"] = Provenance(
                status,  # type: ignore[arg-type]
                by="augment",
                old=old,
                new=new,
                reason=whole,
                layer=layer.name,
            )


def _is_registered(axes: list[Axes]) -> bool:
    return any(item.units is not None for item in axes)


def _track(module: nn.Module, axes: Axes, synapses: Synapses) -> bool:
    """Let a layer count its activity, if its configuration asks for that; whether it does."""
    if wants_activity(synapses) and axes.units is not None and isinstance(module, BioLayer):
        units = synapses.shape[synapses.post_axis]
        if synapses.kind.startswith("conv_transpose"):
            units *= synapses.groups
        track_activity(module, units, axes.units)
        return True
    return False
