"""`Attachment`: the schedulers of the transformed modules inside a model that somebody trains."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from biofx.config import BioConfig
from biofx.errors import ModelError, PlasticityError
from biofx.plasticity import GradScheduler, Rule
from biofx.plasticity.scheduler.arguments import optimizers_of, rules_of
from biofx.synapses import record_of, synapses_of
from biofx.transform import transform


class Attachment:
    """Makes a scheduler for each transformed module, and new ones when optimizers are remade.

    Args:
        config: transforms the model where it is not transformed yet; None leaves it as it is.
        rules, seed, apply, compile: as in `GradScheduler`.
    """

    def __init__(
        self,
        config: BioConfig | None,
        *,
        rules: Iterable[Rule] | None,
        seed: int,
        apply: Any,
        compile: Any,
    ) -> None:
        if config is not None and not isinstance(config, BioConfig):
            raise PlasticityError(f"config={config!r} must be a BioConfig or None")
        self.config = config
        self.options = {
            "rules": None if rules is None else rules_of(rules),
            "seed": seed,
            "apply": apply,
            "compile": compile,
        }
        self.schedulers: dict[str, GradScheduler] = {}
        self._roots: list[nn.Module] = []
        self._optimizers: list[Optimizer] = []

    def __getstate__(self) -> dict[str, Any]:
        """A copy begins without schedulers, which belong to one model and its optimizers."""
        empty: dict[str, Any] = {"schedulers": {}, "_roots": [], "_optimizers": []}
        return {**self.__dict__, **empty}

    def transform(self, model: nn.Module) -> None:
        """Transform the model itself, unless it or a module in it is transformed already.

        Raises:
            ModelError: it is transformed, with another configuration.
        """
        found = dict(transformed_in(model))
        if self.config is None:
            return
        for name, root in found.items():
            if record_of(root).config != self.config:
                raise ModelError(
                    f"{name or type(model).__name__} is transformed already, with another "
                    "configuration: leave out either biofx.transform or config="
                )
        if not found:
            transform(model, self.config, inplace=True)

    def attach(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        *,
        wrapper: nn.Module | None = None,
    ) -> None:
        """Let the optimizers' steps be plastic ones; nothing is done if they are so already.

        Schedulers of other optimizers are detached. What they remember goes on in the new ones.

        Args:
            model: the transformed model, or one that has transformed modules in it.
            optimizers: those that exist now; some may hold no synapse.
            wrapper: `DistributedDataParallel` around `model`, if there is one.

        Raises:
            PlasticityError: nothing is transformed, or no optimizer holds a synapse.
        """
        bare = [around[0] if around else one for one, around in optimizers_of(list(optimizers))]
        if _same(bare, self._optimizers) and self.schedulers:
            return
        roots = dict(transformed_in(model))
        if not roots:
            raise PlasticityError(
                f"nothing in {type(model).__name__} was made by biofx.transform: transform it, or "
                "give config=biofx.BioConfig(...)"
            )
        before = {
            name: scheduler.state_dict()
            for (name, scheduler), root in zip(self.schedulers.items(), self._roots, strict=True)
            if roots.get(name) is root
        }
        self.detach()
        for name, root in roots.items():
            own = [one for one in bare if _holds(one, root)]
            if not own:
                continue
            target = wrapper if root is model and wrapper is not None else root
            self.schedulers[name] = scheduler = GradScheduler(target, own, **self.options)
            self._roots.append(root)
            if name in before and not any(scheduler.steps):
                _go_on(scheduler, before[name])
        if not self.schedulers:
            raise PlasticityError("none of the optimizers holds a weight of a transformed module")
        self._optimizers = bare

    def detach(self) -> None:
        """Let the optimizers' steps be ordinary ones again."""
        for scheduler in self.schedulers.values():
            scheduler.detach()
        self.schedulers, self._roots, self._optimizers = {}, [], []

    @property
    def steps(self) -> int:
        """Steps taken, of the optimizer that has taken most."""
        return max((max(one.steps, default=0) for one in self.schedulers.values()), default=0)

    def scalars(self) -> dict[str, float]:
        """`GradScheduler.scalars` of all, under the layers' names in the whole model."""
        return {
            key.replace("/", f"/{name}.", 1) if name else key: value
            for name, scheduler in self.schedulers.items()
            for key, value in scheduler.scalars().items()
        }


def transformed_in(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of what `biofx.transform` has made: the model itself, or modules in it."""
    if _is_transformed(model):
        yield "", model
        return
    for name, child in model.named_children():
        for inner, module in transformed_in(child):
            yield f"{name}.{inner}" if inner else name, module


def _is_transformed(module: nn.Module) -> bool:
    try:
        record_of(module)
    except ModelError:
        return False
    return True


def _holds(optimizer: Optimizer, root: nn.Module) -> bool:
    model_parameters = dict(root.named_parameters(remove_duplicate=False))
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return any(id(model_parameters.get(name)) in held for name in synapses_of(root))


def _same(first: Sequence[Any], second: Sequence[Any]) -> bool:
    return len(first) == len(second) and all(a is b for a, b in zip(first, second, strict=True))


def _go_on(scheduler: GradScheduler, state: dict[str, Any]) -> None:
    if len(scheduler.steps) == len(state["steps"]):
        scheduler.load_state_dict(state)
        return
    warnings.warn(
        f"there were {len(state['steps'])} optimizers and are {len(scheduler.steps)} now: "
        "plasticity starts anew",
        UserWarning,
        stacklevel=3,
    )
