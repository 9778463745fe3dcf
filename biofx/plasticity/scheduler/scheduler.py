"""`GradScheduler`: applies plasticity rules while a model trains."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Never, SupportsIndex

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from biofx.errors import PlasticityError
from biofx.plasticity.kernels.compiled import When, kernels_for
from biofx.plasticity.numerics.shards import local
from biofx.plasticity.rules.crystallize import Crystallize
from biofx.plasticity.rules.dale import DalesPrinciple
from biofx.plasticity.rules.fuzzy import FuzzyLearningRates
from biofx.plasticity.rules.rejuvenate import Rejuvenate
from biofx.plasticity.rules.restore import Restore
from biofx.plasticity.rules.rule import Rule
from biofx.plasticity.rules.turnover import UnitTurnover
from biofx.plasticity.rules.volume import VolumeDependentRates
from biofx.plasticity.scheduler import checkpoint, show
from biofx.plasticity.scheduler.advice import advise
from biofx.plasticity.scheduler.apply import Applier
from biofx.plasticity.scheduler.arguments import (
    ACTING,
    check_arguments,
    extent,
    optimizers_of,
    refuse_second,
    refuse_strangers,
    rules_of,
    warn_if_blind,
)
from biofx.plasticity.scheduler.carried_state import CarriedState, begun, carry
from biofx.plasticity.scheduler.checkpoint_validation import accepted
from biofx.plasticity.scheduler.engine import Engine
from biofx.plasticity.scheduler.gradient_hooks import GradientHooks
from biofx.plasticity.scheduler.metrics import (
    applied_factors,
    expect,
    factors_at,
    flat,
    summarise,
)
from biofx.plasticity.scheduler.observer import Observers
from biofx.plasticity.scheduler.optimizer_hooks import Mode, OptimizerHooks
from biofx.plasticity.scheduler.surgery import present, problem_of
from biofx.synapses import unwrap


def configured_rules() -> list[Rule]:
    """All rules, each acting where a layer's configuration turns it on; in their order."""
    return [
        FuzzyLearningRates(configured=True),
        VolumeDependentRates(configured=True),
        Crystallize(configured=True),
        Rejuvenate(configured=True),
        UnitTurnover(configured=True),
        Restore(configured=True),
        DalesPrinciple(configured=True),
    ]


class GradScheduler:
    """Gives every synapse its own learning rate, and its own fate, while a model trains.

        >>> optimizer = torch.optim.AdamW(bio.parameters())
        >>> scheduler = GradScheduler(bio, optimizer)
        >>> for x, y in batches:
        ...     optimizer.zero_grad()
        ...     loss(bio(x), y).backward()
        ...     optimizer.step()  # plasticity acts here

    It hooks `optimizer.step()`, and nothing else in the loop changes: gradient accumulation,
    clipping, `GradScaler` (a skipped step is no step), closures and learning rate schedulers work
    as they do without it. Per step: rules judge the gradients, factors are computed, the optimizer
    moves the weights, each weight's move is multiplied by its factors, and rules that change
    weights run, in the order of `rules`.

    Where factors act:

    - ``apply="update"``: after the step, w ← w_before + f·(w − w_before), which is a learning rate
      under every optimizer (LBFGS forgets the curvature that it found on a path of its own, and
      begins each step anew). `.grad` is never changed. It costs a copy of the weights during the
      step, whose memory is kept on a CPU; plain SGD (no momentum, no weight decay), whose update is
      known, needs none for the rules that come with biofx.
    - ``apply="gradient"``: before the step, g ← f·g, in place: if that step raises, compute the
      gradients anew before it is tried again. Optimizers that normalise gradients
      (Adam and its like) all but undo it, and a warning says so.

    Without an optimizer, each incoming gradient is scaled before it is added to `.grad`, and
    `step()`, called after the weights were updated, applies the rest. `Crystallize` then judges the
    first gradient of each step, with a `GradScaler`'s scale in it.

    The state of the rules travels in ``optimizer.state_dict()``, so that whatever keeps and loads
    the optimizer's state keeps theirs.

    Several rules on one parameter multiply. The scheduler never touches PyTorch's random state.

    Args:
        bio: a model made by `biofx.transform`; `torch.compile`d, in `DistributedDataParallel`, or
            after `fully_shard`.
        optimizer: one, several (each counts its own steps), or None. The schedulers of several
            models may share one.
        rules: any list of rules, in the order in which they act. None: `FuzzyLearningRates`,
            `VolumeDependentRates`, `Crystallize`, `Rejuvenate`, `UnitTurnover`, `Restore`,
            `DalesPrinciple`, each where the layers' configuration turns it on. (`UnitTurnover` acts
            after the others, wherever it stands.)
        seed: of all draws. Every process must be given the same.
        apply: where factors act.
        compile: fuse the rules into kernels with `torch.compile`; "auto" does where it pays.

    Warns:
        UserWarning: settings do something else than they say (see the cards of the rules); and,
            while training, once: most units of a layer are silent.

    Raises:
        ModelError: the model was not made by `biofx.transform`.
        PlasticityError: the optimizer shares no weight with the model, another scheduler would
            scale the same steps or gradients, no layer carries synapses, a rule cannot serve a
            layer, or a hyperparameter is out of range.
    """

    def __init__(
        self,
        bio: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        *,
        rules: Iterable[Rule] | None = None,
        seed: int = 0,
        apply: Mode = "update",
        compile: When = "auto",
    ) -> None:
        synapses = present(bio)
        chosen = configured_rules() if rules is None else rules_of(rules)
        check_arguments(seed, apply, compile)
        optimizers = optimizers_of(optimizer)
        refuse_second(bio, synapses, [one for one, _ in optimizers])
        self._apply: Mode = apply if optimizers else "gradient"
        kernels = kernels_for(compile, *extent(bio, synapses))
        self._engine = Engine(bio, synapses, rules=chosen, seed=int(seed), kernels=kernels)
        self._applier = applier = Applier(kernels)
        self._attachments: list[OptimizerHooks] = []
        self._carried: list[CarriedState] = []
        self._hooks: GradientHooks | None = None
        try:
            for one, around in optimizers:
                attachment = OptimizerHooks(
                    one, self._engine, mode=apply, applier=applier, around=around
                )
                self._attachments.append(attachment)
            refuse_strangers(self._attachments)
            for one, _ in optimizers:
                self._engine.begun |= begun(one, synapses)
            with torch.no_grad():
                for attachment in self._attachments:
                    attachment.prepare()
                carry(self._attachments, apply, self._applier.forget, into=self._carried)
            if not optimizers:
                self._hooks = GradientHooks(self._engine, applier)
            ACTING.update(self._counters())
        except BaseException:
            self.detach()
            raise
        if apply == "gradient":
            for one, _ in optimizers:
                warn_if_blind(one)
        advise(self._engine)

    def __repr__(self) -> str:
        return show.line(self._engine, self.steps, detached=self.detached)

    def _repr_html_(self) -> str:
        return show.table(self._engine, self.steps, detached=self.detached)

    @property
    def steps(self) -> list[int]:
        """Steps taken, one number per optimizer (one in all without an optimizer)."""
        if self._hooks is not None:
            return [self._hooks.steps]
        return [attachment.steps for attachment in self._attachments]

    @property
    def detached(self) -> bool:
        """Whether it acts no more, because `detach` was called."""
        return not any(counter in ACTING for counter in self._counters())

    @property
    def model(self) -> nn.Module:
        """The model as it was given, wrapped or not."""
        return self._engine.model

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, in the order in which they act."""
        return self._engine.rules

    @property
    def seed(self) -> int:
        """The seed of all draws."""
        return self._engine.seed

    @property
    def observers(self) -> Observers:
        """Who watches the scheduler, such as a `Recorder`."""
        return self._engine.observers

    def step(self) -> None:
        """Without an optimizer: the weights have been updated; apply the rest of the rules.

        Raises:
            PlasticityError: there is an optimizer, whose own `step()` does this, or the scheduler
                was detached.
        """
        if self._hooks is None or self.detached:
            raise PlasticityError(
                "step() is for a GradScheduler without an optimizer; this one "
                + ("was detached" if self.detached else "acts in optimizer.step()")
            )
        self._hooks.step()

    def metrics(self, *, factors: bool = True) -> dict[str, dict[str, Any]]:
        """What the rules did to each parameter at its last step.

        Args:
            factors: False leaves out the numbers of factors, which take most of the time.

        Returns:
            For each parameter, by name, a dict of "factor_mean", "factor_std", "factor_q05",
            "factor_q50", "factor_q95", "rate_histogram" (a dict of "edges" and "share"; the last
            bin is open), "rate_mean" (factor times learning rate), and, of the rules that act,
            "crystallized" (share of synapses ever dampened), "turnover" (share replaced at the last
            rejuvenation), "dale_projected" (weights set to 0 at the last step), "dale" (how the
            layer began, and why), "distance" (root mean square distance from where `Restore`
            pulls), "units_replaced" (at the last step), "units_left_alone" (why none can be, where
            that is so), "silent" (share of output units whose weights no gradient reached when
            last looked at). Factors are those of at most 2,048 synapses, at the weights as they are
            now; under sharding, numbers are the local shard's. Before the first step, what the
            rules report, without factors.
        """
        found = {}
        self._deal(multiplied=factors)
        with torch.no_grad():
            if not any(self.steps):
                return {
                    name: summarise(one, one.pairs[0][1].weight, factors=False)
                    for name, one in self._engine.bindings.items()
                    if one.pairs
                }
            for attachment in self._attachments:
                for name, parameter, group in attachment.named():
                    binding = self._engine.bindings.get(name)
                    left = name in self._engine.surgery.left
                    if binding is not None and binding.stepped and not left:
                        lr = float(group["lr"]) if "lr" in group else None
                        found[name] = summarise(binding, local(parameter), lr=lr, factors=factors)
            if self._hooks is not None:
                model = unwrap(self._engine.model)
                for name in self._engine.surgery.present():
                    binding = self._engine.bindings.get(name)
                    if binding is not None and binding.stepped:
                        weight = local(model.get_parameter(name))
                        found[name] = summarise(binding, weight, factors=factors)
        return found

    def scalars(self) -> dict[str, float]:
        """The numbers of `metrics` for a logger, under flat names.

        Returns:
            A float under each "plasticity/<layer>/<metric>", such as
            "plasticity/encoder.fc/factor_mean". A layer's parameter that is not called "weight"
            keeps its own name in place of the layer's ("plasticity/rnn.weight_hh_l0/factor_mean").
        """
        return flat(self.metrics())

    def factors(self, name: str, *, at: tuple[Tensor, ...] | None = None) -> Tensor:
        """The plasticity factors of one parameter at the last step that it took part in.

        The product over all rules: what the step's update (or gradient) was multiplied by. What a
        rule computes from the weights (`VolumeDependentRates`), or goes on changing after the step,
        is evaluated at the weights and the state as they are now; nothing is kept for it.

        Args:
            name: of the parameter, as in ``info(bio).synapses``.
            at: places in the local weight, one tensor of indices per axis; only their factors are
                computed.

        Returns:
            A new float32 tensor of the parameter's local shape (of the indices' shape for `at`), on
            its device; 1 where no rule has acted, and everywhere before the first step.

        Raises:
            PlasticityError: no parameter of this name carries synapses, or not any more.
        """
        expect(name, self._engine.synapses)
        problem = problem_of(self._engine.model, self._engine.synapses[name])
        if problem is not None:
            raise PlasticityError(f"{name} has no factors: {problem}")
        parameter = unwrap(self._engine.model).get_parameter(name)
        binding = self._engine.bindings.get(name)
        self._deal()
        with torch.no_grad():
            weight = local(parameter)
            if binding is None:  # frozen so far
                return torch.ones_like(weight if at is None else weight[at], dtype=torch.float32)
            if at is None:
                return applied_factors(binding, weight)
            if len(at) != weight.dim():
                raise PlasticityError(
                    f"at has {len(at)} tensors of indices, and {name} has {weight.dim()} axes"
                )
            # From the end, where negative.
            at = tuple(line % size for line, size in zip(at, weight.shape, strict=True))
            return factors_at(binding, weight, at)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on as if never stopped: tensors and plain values.

        Loads with ``torch.load(weights_only=True)`` and through `torch.distributed.checkpoint`;
        states of sharded parameters are DTensors. Tensors share memory with the scheduler's.
        """
        for attachment in self._attachments:
            attachment.interrupted()
        return {
            "version": checkpoint.VERSION,
            "fingerprint": checkpoint.fingerprint(self._engine, apply=self._apply),
            "steps": list(self.steps),
            "state": checkpoint.collect(self._engine),
            **self._engine.observers.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, as if never stopped.

        Raises:
            CheckpointError: it was written with another seed, model, configuration or set of
                rules, or is damaged; the message names what and where. The scheduler is as it was.
        """
        found = accepted(state_dict, self._engine, optimizers=len(self.steps), apply=self._apply)
        for attachment in self._attachments:
            attachment.interrupted()
            attachment.resumed = True
        self._engine.observers.load_state_dict(found.observers)
        checkpoint.spread(self._engine, found.states, held=found.held)
        self._applier.forget()
        for counter, count in zip(self._counters(), found.steps, strict=True):
            counter.steps = count
        if self._hooks is not None:
            self._hooks.refresh()

    def detach(self) -> None:
        """Remove all hooks; the optimizer is as it was. Doing it again does nothing."""
        ACTING.difference_update(self._counters())
        self._engine.units.detach()
        for attachment in self._attachments:
            attachment.detach()
        for carried in self._carried:
            carried.detach()
        if self._hooks is not None:
            self._hooks.detach()

    def __reduce_ex__(self, protocol: SupportsIndex) -> Never:
        raise PlasticityError(
            "a GradScheduler belongs to its model and its optimizer, and is not copied or pickled "
            "with them; keep its state_dict(), make a new GradScheduler for the copy of both, and "
            "give it the state with load_state_dict()"
        )

    def _deal(self, multiplied: bool = False) -> None:
        """Give each parameter what the last step that was taken tells of it: see `Arenas.deal`."""
        for attachment in self._attachments:
            attachment.interrupted()
        for arenas in self._engine.arenas:
            arenas.deal(multiplied)

    def _counters(self) -> Sequence[OptimizerHooks | GradientHooks]:
        return self._attachments if self._hooks is None else [self._hooks]
