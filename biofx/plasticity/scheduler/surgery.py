"""Which of the layers that were transformed are still there: models are operated on afterwards."""

import warnings
from collections.abc import Mapping

from torch import Tensor, nn

from biofx.errors import ModelError, PlasticityError
from biofx.plasticity.numerics.shards import local
from biofx.synapses import BioLayer, Synapses, record_of, synapses_of, unwrap

REMEDY = (
    "left alone: the layer learns as in a plain model, without plasticity; transform the model "
    "after such changes"
)


def present(bio: nn.Module) -> dict[str, Synapses]:
    """The synapses of a transformed model whose parameters are what they were.

    Raises:
        ModelError: the model was not made by `biofx.transform`.
        PlasticityError: nothing that was transformed is left.

    Warns:
        UserWarning: some layers have been pruned, parametrized, resized or replaced since.
    """
    if not isinstance(bio, nn.Module):
        raise ModelError(f"expected a model made by biofx.transform, got {type(bio).__name__}")
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in bio.modules()):
        raise PlasticityError(
            "FullyShardedDataParallel flattens all parameters of a module into one, in which no "
            "synapse can be told from another; use torch.distributed.fsdp.fully_shard, which "
            "keeps them apart, and make optimizer and scheduler after it"
        )
    found, changed = {}, {}
    for name, synapses in synapses_of(bio).items():
        problem = problem_of(bio, synapses)
        if problem is None:
            found[name] = synapses
        else:
            changed[name] = problem
    if changed and not found:
        raise PlasticityError(
            f"no layer is as it was transformed ({listed(changed)}); transform the model anew, "
            "after such changes"
        )
    if changed:
        warnings.warn(f"{listed(changed)}: {REMEDY}", UserWarning, stacklevel=4)
    return found


class Surgery:
    """Notices, while a model trains, what is done to it.

    Args:
        model: wrapped or not.
        synapses: {parameter name: Synapses}.
    """

    def __init__(self, model: nn.Module, synapses: Mapping[str, Synapses]) -> None:
        self.model = model
        self.synapses = synapses
        self.left: set[str] = set()

    def present(self) -> list[str]:
        """Names of the parameters that are still there, as they were transformed."""
        problems = {name: problem_of(self.model, s) for name, s in self.synapses.items()}
        return [name for name, problem in problems.items() if not self._leave(name, problem)]

    def leaves(self, name: str, parameter: Tensor) -> bool:
        """Whether a parameter is left alone, because it has another shape now."""
        return self._leave(name, resized(parameter, self.synapses[name]))

    def _leave(self, name: str, problem: str | None) -> bool:
        if problem is not None and name not in self.left:
            self.left.add(name)
            warnings.warn(f"{name}: {problem}: {REMEDY}", UserWarning, stacklevel=2)
        return problem is not None


def problem_of(bio: nn.Module, synapses: Synapses) -> str | None:
    """Why a parameter is not the one that was transformed; None if it is."""
    model, layer = unwrap(bio), synapses.layers[0]
    try:
        module = model.get_submodule(layer)
    except AttributeError:
        return "its layer is gone"
    known = record_of(bio).layers.get(layer)
    augmented = known is not None and known.new_type != known.old_type
    if augmented and not isinstance(module, BioLayer):
        return f"its layer was replaced by one of type {type(module).__name__}"
    try:
        parameter = model.get_parameter(synapses.parameter)
    except AttributeError:
        return "it is no parameter any more (pruning, a parametrization, a quantised layer)"
    weight = local(parameter)
    if type(weight) is not Tensor:
        return (
            f"its weights are a {type(weight).__name__}, of which only some operations are known; "
            "train plain floating-point weights, and quantise them afterwards"
        )
    return resized(parameter, synapses)


def resized(parameter: Tensor, synapses: Synapses) -> str | None:
    """How a parameter's shape differs from that which was transformed; None if it does not."""
    if tuple(parameter.shape) == tuple(synapses.shape):
        return None
    return f"it has shape {tuple(parameter.shape)}, and had {tuple(synapses.shape)}"


def listed(problems: Mapping[str, str]) -> str:
    """Parameters and what is the matter with them, as one line."""
    shown = [f"{name}: {problem}" for name, problem in list(problems.items())[:4]]
    more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
    return "; ".join(shown) + more
