"""Augment: weight layers become bio-augmented layers, or are skipped with a reason."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from biofx.errors import ModelError
from biofx.passes.context import Provenance, TransformContext, WeightLayer, join
from biofx.synapses import (
    COUNTS,
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

    def __init__(self, context: TransformContext) -> None:
        self.context = context
        self.counters: list[str] = []  # names of the buffers that count activity

    def requires(self, graph_module: nn.Module) -> None:
        if not self.context.weights:
            seen = [f"{name or 'the model'}: {why}" for name, why in self.context.ignored.items()]
            more = "" if self.context.captured.whole or not seen else "pass example_inputs, "
            raise ModelError(
                f"{original_class(graph_module).__name__} has no weight layer that biofx knows"
                + (f" ({seen[0]})" if seen else "")
                + f"; {more}register its layer type with biofx.register, "
                "or pass a model with weights"
            )

    def call(self, graph_module: nn.Module) -> PassResult:
        context = self.context
        owners: dict[int, str] = {}
        for layer in context.weights.values():
            config = context.config.for_layer(layer.name)
            parameters = [layer.module.get_parameter(axes.parameter) for axes in layer.axes]
            reason = self._reason(layer, parameters)
            names = []
            for axes, parameter in zip(layer.axes, parameters, strict=True):
                name = join(layer.name, axes.parameter)
                owner = owners.setdefault(id(parameter), name)
                if reason is not None and not reason.startswith("frozen"):
                    continue
                names.append(owner)
                if owner in context.synapses:
                    known = context.synapses[owner]
                    if layer.name not in known.layers:
                        layers = (*known.layers, layer.name)
                        context.synapses[owner] = replace(
                            known, layers=layers, output=known.output and layer.output
                        )
                    continue
                context.synapses[owner] = Synapses(
                    parameter=name,
                    kind=axes.kind,
                    shape=tuple(parameter.shape),
                    post_axis=axes.post % parameter.ndim,
                    pre_axis=axes.pre % parameter.ndim,
                    config=config,
                    layers=(layer.name,),
                    groups=axes.groups,
                    bundles=axes.bundles,
                    fed=layer.fed or axes.inner,
                    depth=layer.depth,
                    rank=layer.rank,
                    ranks=len(context.weights),
                    output=layer.output,
                )
            self._replace(layer, names, reason)
        if self.counters:
            graph_module.__dict__[_UNSENT] = [*getattr(graph_module, _UNSENT, ()), *self.counters]
        for name, reason in context.ignored.items():
            if name not in context.layers:
                kind = original_class(graph_module.get_submodule(name)).__name__
                context.layers[name] = Layer(
                    name=name, old_type=kind, new_type=kind, action="skipped", reason=reason
                )
        return PassResult(graph_module, bool(context.synapses))

    def _reason(self, layer: WeightLayer, parameters: Sequence[nn.Parameter]) -> str | None:
        if not self.context.config.selects(layer.name):
            return "excluded by the user"
        if any(p.is_complex() for p in parameters):
            return "complex weights"
        if not all(p.is_floating_point() for p in parameters):
            return "weights are not floating-point numbers"
        if not any(p.requires_grad for p in parameters):
            return "frozen (rules act once it requires gradients)"
        return None

    def _unreached(self, layer: WeightLayer) -> str | None:
        if layer.reached or layer.unknown:
            return layer.unknown
        mode = "training" if self.context.captured.training else "evaluation"
        return f"nothing calls it in {mode} mode"

    def _replace(self, layer: WeightLayer, names: list[str], reason: str | None) -> None:
        old = original_class(layer.module).__name__
        if names:
            synapses = tuple(self.context.synapses[name] for name in names)
            if layer.registered:
                augment(layer.module, synapses)
            else:  # a module of the user's that multiplies by its own parameter keeps its class
                layer.module.__dict__["_biofx_synapses"] = synapses
            if _track(layer.module, layer.axes[0], synapses[0]):
                self.counters.append(join(layer.name, COUNTS))
        new = type(layer.module).__name__
        self.context.layers[layer.name] = Layer(
            name=layer.name,
            old_type=old,
            new_type=new,
            action="augmented" if reason is None else "skipped",
            reason=reason or self._unreached(layer),
            parameters=tuple(dict.fromkeys(names)),
            depth=layer.depth,
            rank=layer.rank,
            output=layer.output,
        )
        for node in layer.nodes:
            node.meta["biofx"] = Provenance(
                "replaced" if reason is None else "skipped",
                by="augment", old=old, new=new, reason=reason, layer=layer.name,
            )  # fmt: skip


def _track(module: nn.Module, axes: Axes, synapses: Synapses) -> bool:
    """Let a layer count its activity, if its configuration asks for that; whether it does."""
    # A tied weight has the output units of one layer; those of the other are its inputs.
    counts = axes.units is not None and axes.post == synapses.post_axis
    if wants_activity(synapses) and counts and isinstance(module, BioLayer):
        units = synapses.shape[synapses.post_axis]
        if synapses.kind.startswith("conv_transpose"):
            units *= synapses.groups
        track_activity(module, units, axes.units)  # type: ignore[arg-type]
        return True
    return False
