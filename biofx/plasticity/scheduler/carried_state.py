"""`CarriedState`: plasticity state that travels in an optimizer's own state dict."""

import functools
import json
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from biofx.errors import CheckpointError
from biofx.plasticity.numerics.shards import all_sum
from biofx.plasticity.scheduler import checkpoint
from biofx.plasticity.scheduler.checkpoint_validation import Accepted, accepted
from biofx.plasticity.scheduler.optimizer_hooks import OptimizerHooks

# It stands in the first param group: whatever keeps an optimizer's state keeps what its groups say.
# `Optimizer.load_state_dict` does so too where there is no scheduler yet, and one that is made
# later finds it there.
KEY = "plasticity"


class CarriedState:
    """Puts the plasticity state of one optimizer's parameters into its state dict, and takes it.

    Args:
        hooks: of the optimizer; they count its steps.
        apply: where factors act, as checkpoints say it.
        names: gives the parameters whose state this optimizer carries.
        changed: called when a state was taken.
        leads: whether it is the first optimizer, which carries the observers' states too.
    """

    def __init__(
        self,
        hooks: OptimizerHooks,
        *,
        apply: str,
        names: Callable[[], Sequence[str]],
        changed: Callable[[], None],
        leads: bool,
    ) -> None:
        self._hooks = hooks
        self._leads = leads
        self._engine = hooks.engine
        self._apply = apply
        self._names = names
        self._changed = changed
        self._checked: Accepted | None = None
        optimizer = hooks.optimizer
        self.key = _free_key(optimizer)
        self._handles = [
            optimizer.register_state_dict_post_hook(self._add),
            optimizer.register_load_state_dict_pre_hook(self._check),
            optimizer.register_load_state_dict_post_hook(self._take),
            # Some optimizers have a `load_state_dict` of their own, which calls no hooks.
            optimizer.register_step_pre_hook(self._before_step),
        ]
        # What counts steps must come after what says how many there have been.
        order: Any = optimizer._optimizer_step_pre_hooks
        order.move_to_end(self._handles[-1].id, last=False)

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def agree(self) -> None:
        """Processes that share parameters must all have been given a state, or none.

        Raises:
            CheckpointError: some have: as where one process reads a file for all, before the others
                could know of the entry.
        """
        groups = self._hooks.optimizer.param_groups
        found = bool(groups) and self.key in groups[0]
        split = [one for one in self._engine.bindings.values() if one.shard.groups]
        if not split:
            return
        shard, device = split[0].shard, split[0].pairs[0][1].weight.device
        have = int(all_sum(torch.tensor(float(found), device=device), shard))
        processes = math.prod(group.size() for group in shard.groups)
        if have not in (0, processes):
            raise CheckpointError(
                f"{have} of {processes} processes were given plasticity state with the "
                "optimizer's: make the GradScheduler before the optimizer's state is loaded"
            )

    def find(self) -> None:
        """Take the state that was loaded into the optimizer before it had these hooks.

        Raises:
            CheckpointError: it belongs to another run, or is damaged.
        """
        groups = self._hooks.optimizer.param_groups
        if groups and self.key in groups[0]:
            self._checked = self._accepted(groups[0][self.key], "optimizer.param_groups[0]")
            del groups[0][self.key]
            self._take(self._hooks.optimizer)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.find()

    def _add(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        self._hooks.interrupted()  # a step that has raised has never been
        names = self._names()
        state_dict["param_groups"][0][self.key] = {
            "version": checkpoint.VERSION,
            "fingerprint": checkpoint.fingerprint(self._engine, names, apply=self._apply),
            "steps": [self._hooks.steps],
            "state": checkpoint.collect(self._engine, names),
            **(self._engine.observers.state_dict() if self._leads else {}),
        }

    def _check(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any] | None:
        """Nothing is taken before the optimizer has taken its own state."""
        self._checked = None
        groups = state_dict.get("param_groups")
        if not isinstance(groups, list) or not groups or not isinstance(groups[0], dict):
            return None  # the optimizer says what is wrong
        if self.key not in groups[0]:
            warnings.warn(
                "the optimizer's state that is loaded holds no plasticity state (it was written "
                f"without a GradScheduler): the rules go on as they are, after {self._hooks.steps} "
                "steps; state that was kept apart comes with GradScheduler.load_state_dict()",
                UserWarning,
                stacklevel=3,
            )
            return None
        first = dict(groups[0])
        self._checked = self._accepted(first.pop(self.key), 'state_dict["param_groups"][0]')
        return {**state_dict, "param_groups": [first, *groups[1:]]}

    def _take(self, optimizer: Optimizer) -> None:
        if self._checked is not None:
            self._hooks.interrupted()  # it must not come back over what is taken now
            found, self._checked = self._checked, None
            if self._leads:
                self._engine.observers.load_state_dict(found.observers)
            checkpoint.spread(self._engine, found.states, self._names(), found.held)
            self._hooks.steps = found.steps[0]
            self._changed()

    def _accepted(self, state: Any, place: str) -> Accepted:
        try:
            return accepted(
                state, self._engine, optimizers=1, apply=self._apply, names=self._names()
            )
        except CheckpointError as error:
            raise CheckpointError(
                f"{error} (plasticity state in the optimizer's; to load the optimizer's without "
                f"it, take it out first: {place}.pop({self.key!r}))"
            ) from None


def carry(
    attachments: Sequence[OptimizerHooks],
    apply: str,
    changed: Callable[[], None],
    *,
    into: list[CarriedState],
) -> None:
    """Let each optimizer's state dict hold the state of its parameters.

    The first one's also holds that of parameters that are in none: frozen ones, left out.

    Raises:
        CheckpointError: an optimizer has been given a state that belongs to another run.
    """

    def names(place: int) -> list[str]:
        own = [{name for name, _, _ in hooks.named()} for hooks in attachments]
        elsewhere = set().union(*own[:place], *own[place + 1 :])
        return [
            name
            for name in attachments[place].engine.kept()
            if name in own[place] or (place == 0 and name not in elsewhere)
        ]

    for place, hooks in enumerate(attachments):
        own = functools.partial(names, place)
        into.append(CarriedState(hooks, apply=apply, names=own, changed=changed, leads=place == 0))
        into[-1].agree()
        into[-1].find()


def begun(optimizer: Optimizer, names: Iterable[str]) -> set[str]:
    """The parameters whose plasticity state was loaded into the optimizer before its scheduler.

    All `names` where the state cannot be read: `CarriedState.find` refuses it then, and no weight
    must have changed.
    """
    groups = optimizer.param_groups
    key = _free_key(optimizer)
    if not groups or key not in groups[0]:
        return set()
    try:
        return set(json.loads(groups[0][key]["fingerprint"])["held"])
    except (KeyError, TypeError, ValueError):
        return set(names)


def _free_key(optimizer: Optimizer) -> str:
    """The schedulers of several models may share an optimizer."""
    hooks = optimizer._optimizer_state_dict_post_hooks.values()
    owners = (getattr(hook, "__self__", None) for hook in hooks)
    taken = {owner.key for owner in owners if isinstance(owner, CarriedState)}
    place = 1
    while (key := KEY if place == 1 else f"{KEY}.{place}") in taken:
        place += 1
    return key
