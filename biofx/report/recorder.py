"""`Recorder`: keeps the history of a run, for a page that shows the life of its synapses."""

import base64
import json
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from biofx import __version__
from biofx.errors import CheckpointError, PlasticityError
from biofx.fields import number_of
from biofx.plasticity.numerics.shards import is_sharded, spread
from biofx.plasticity.scheduler.observer import Observer
from biofx.plasticity.scheduler.scheduler import GradScheduler
from biofx.report import sampling
from biofx.report.facts import containers, differences, facts_of
from biofx.report.file import write
from biofx.report.history import MARKS, MISSING, History, LayerHistory, Snapshot, Synapse
from biofx.report.page import page
from biofx.synapses import record_of, synapses_of, unwrap

# The share replaced at the last rejuvenation, which a resumed run does not know: all are counted.
SUPERSEDED = ("turnover",)


class Recorder(Observer):
    """Looks at a training run every so many steps, and keeps what it saw.

        >>> recorder = biofx.Recorder(scheduler, every=50)
        >>> train(...)
        >>> recorder.save("run.json")  # biofx report run.json -o run.html

    It looks after the first step and after every `every`-th: at the factors, weights and last
    updates of 4,096 synapses of each parameter, a weight matrix of at most 64 × 64, and what
    `GradScheduler.metrics` says. It follows up to 8 synapses of each parameter one by one. Between,
    it counts the synapses that are replaced, and does nothing else; training is the same to the bit
    with it and without. What it looks at depends on shapes and steps alone, never on chance.

    Memory is bounded: 240 samples of up to about 20 layers, fewer of more. When they are full,
    samples are dropped such that those kept lie evenly in the logarithm of the step. The state
    dicts of the optimizer and of the scheduler hold the history: a resumed run goes on with it.

    With several optimizers, steps are those of the first.

    Args:
        scheduler: of a run in one process, or of one of `DistributedDataParallel`.
        every: optimizer steps between samples, at least 1.

    Raises:
        PlasticityError: `every` is no whole number from 1 on, a parameter is sharded, or the
            scheduler has a recorder, or is detached.
    """

    key = "Recorder"

    def __init__(self, scheduler: GradScheduler, *, every: int = 50) -> None:
        every = number_of(every)
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise PlasticityError(f"Recorder: every={every!r} must be a whole number of at least 1")
        if not isinstance(scheduler, GradScheduler):
            raise PlasticityError(f"Recorder: expected a GradScheduler, got {scheduler!r}")
        if scheduler.detached:
            raise PlasticityError(
                "Recorder: the scheduler is detached and takes no steps; give the one that acts"
            )
        self.every = every
        self._scheduler = scheduler
        self._synapses = dict(synapses_of(scheduler.model))
        self._places: dict[str, tuple[Tensor, ...]] = {}
        self._weights: dict[str, Tensor] = {}  # of the sample, one step before it is looked at
        self._fresh: dict[str, Tensor] = {}  # replaced since the last sample
        self._clock = scheduler.steps[0]
        self._watching = False
        self.history = self._begin()
        scheduler.observers.add(self)
        self._watching = True

    def __repr__(self) -> str:
        often = "each step" if self.every == 1 else f"every {self.every:,} steps"
        model, seen = ascii(self.history.facts["model"])[1:-1], len(self.history.steps)
        return (
            f"<Recorder of {model}: {seen:,} samples so far, one {often}; .save(path) keeps them>"
        )

    @torch.no_grad()
    def _begin(self) -> History:
        model = unwrap(self._scheduler.model)
        record = record_of(model)
        count = len(self._synapses)
        history = History(
            facts={
                "biofx": __version__,
                "model": type(model).__name__,
                "rules": [rule.name for rule in self._scheduler.rules],
                "seed": self._scheduler.seed,
                "every": self.every,
            },
            tree=containers(model, self._synapses),
            skipped=[
                {"name": layer.name, "type": layer.old_type, "reason": layer.reason or ""}
                for layer in record.layers.values()
                if layer.action == "skipped"
            ],
            limit=sampling.kept_samples(count),
        )
        types = {layer.name: layer.old_type for layer in record.layers.values()}
        for name, synapses in self._synapses.items():
            sample = self._sample(name)
            layer = LayerHistory(facts_of(synapses, types, self._scheduler))
            layer.before = self._snapshot(name, sample)
            kept = sampling.kept_synapses(count)
            for place in sampling.chosen_to_follow(sample, kept - kept // 2):
                self._follow(name, layer, place, born=self._clock)
            history.layers[name] = layer
            if self._due(self._clock + 1):
                self._weights[name] = sample
        return history

    def stepped(self) -> None:
        """A step is over: look, if it is time."""
        clock = self._scheduler.steps[0]
        if clock == self._clock:
            return  # another optimizer's
        self._clock = clock
        if self._due(clock):
            self._look(clock)
        if self._due(clock + 1):
            self._weights = {name: self._sample(name) for name in self._synapses}

    def replaced(self, name: str, fresh: Tensor) -> None:
        """Synapses were replaced: count them, and note it of those that are followed."""
        step = self._scheduler.steps[0]
        count = fresh.sum()
        known = self._fresh.get(name)
        self._fresh[name] = count if known is None else known + count
        layer = self.history.layers[name]
        new = fresh[self._at(name, fresh.device)].cpu()
        for synapse in layer.synapses:
            if bool(new[synapse.index]) and len(synapse.replaced) < MARKS:
                synapse.replaced.append(step)
        if len(layer.synapses) < sampling.kept_synapses(len(self._synapses)):
            known_places = {synapse.index for synapse in layer.synapses}
            born = [
                place for place in new.nonzero().flatten().tolist() if place not in known_places
            ]
            if born:
                self._follow(name, layer, born[len(born) // 2], born=step)

    def to_html(self) -> str:
        """The page as text: one file without a request to anywhere, in light and dark."""
        return page(self._content())

    def save(self, path: str | Path) -> None:
        """Write the history as JSON, for `biofx report`; the file appears whole or not at all.

        Raises:
            ReportError: the file cannot be written, or its name ends in .html.
        """
        write(path, json.dumps(self._content(), separators=(",", ":")) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """The history as one string of JSON; a distributed checkpoint stores each leaf apart."""
        content = {
            "history": self._content(),
            "clock": self._clock,
            "weights": {
                name: base64.b64encode(array("f", sample.tolist()).tobytes()).decode("ascii")
                for name, sample in self._weights.items()
            },
        }
        return {"content": json.dumps(content, separators=(",", ":"))}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on with the history of a checkpoint.

        Raises:
            CheckpointError: it is none, or of another model.
        """
        try:
            content = json.loads(state_dict["content"])
            history = History.from_dict(content["history"])
            weights = {
                name: torch.tensor(array("f", base64.b64decode(text)).tolist())
                for name, text in content["weights"].items()
            }
            clock = int(content["clock"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"this is not the state of a Recorder ({error!r})") from error
        ours = {name: layer.facts["shape"] for name, layer in self.history.layers.items()}
        theirs = {name: layer.facts["shape"] for name, layer in history.layers.items()}
        if ours != theirs:
            raise CheckpointError(f"the history is of another model: {differences(theirs, ours)}")
        history.facts["every"] = self.every
        self.history, self._weights, self._clock = history, weights, clock
        self._fresh = {}

    def detach(self) -> None:
        """Watch no longer; the history stays as it is. Doing it again does nothing."""
        self._content()
        self._watching = False
        self._scheduler.observers.remove(self)
        self._weights = {}

    def _due(self, step: int) -> bool:
        return step == 1 or step % self.every == 0

    @torch.no_grad()
    def _look(self, step: int) -> None:
        self._count()
        metrics = self._scheduler.metrics(factors=False)
        model = unwrap(self._scheduler.model)
        length = len(self.history.steps)
        for name, layer in self.history.layers.items():
            synapses = self._synapses[name]
            parameter = model.get_parameter(name)
            sample = self._sample(name)
            factors = self._scheduler.factors(name, at=self._at(name, parameter.device)).cpu()
            numbers = {
                key: float(value)
                for key, value in metrics.get(name, {}).items()
                if isinstance(value, int | float) and key not in SUPERSEDED
            }
            silent = sampling.silent_share(parameter.grad, synapses)
            if silent is not None:
                numbers["silent"] = silent
            if layer.facts["replaces"]:
                numbers["replaced"] = layer.replaced / max(parameter.numel(), 1)
            numbers |= sampling.factor_numbers(factors)
            numbers |= sampling.weight_numbers(sample)
            layer.add(length, numbers)
            layer.factors.append(sampling.factor_histogram(factors))
            before = self._weights.get(name)
            moved = sample[:0] if before is None else sample - before
            layer.updates.append(sampling.update_histogram(moved))
            for synapse in layer.synapses:
                synapse.weight.append(float(sample[synapse.index]))
                synapse.factor.append(float(factors[synapse.index]))
        self.history.steps.append(step)
        self._weights = {}
        self.history.thin(self.every)

    def _count(self) -> None:
        """Add the synapses replaced since the last time."""
        for name, count in self._fresh.items():
            layer = self.history.layers[name]
            layer.replaced += int(count)
            layer.facts["replaces"] = True
        self._fresh = {}

    def _content(self) -> dict[str, Any]:
        """The history up to now, and the weights as they are now."""
        self._count()
        if self._watching:
            for name, layer in self.history.layers.items():
                layer.after = self._snapshot(name, self._sample(name))
        return self.history.to_dict()

    def _parameter(self, name: str) -> Tensor:
        parameter = unwrap(self._scheduler.model).get_parameter(name)
        if is_sharded(parameter):
            raise PlasticityError(
                f"Recorder: {name} is sharded, and one process sees only a part of its synapses; "
                "record a run whose model is whole in each process (one device, or "
                "DistributedDataParallel)"
            )
        return parameter.detach()

    def _at(self, name: str, device: torch.device) -> tuple[Tensor, ...]:
        """Where the sampled synapses of a parameter are, on its device."""
        known = self._places.get(name)
        if known is None or known[0].device != device:
            shape = self._synapses[name].shape
            flat = self._flat(name).to(device)
            known = self._places[name] = torch.unravel_index(flat, shape)
        return known

    def _flat(self, name: str) -> Tensor:
        return spread(torch.Size(self._synapses[name].shape).numel(), sampling.SAMPLE)

    def _sample(self, name: str) -> Tensor:
        """The sampled weights, float32 on the CPU."""
        parameter = self._parameter(name)
        return parameter[self._at(name, parameter.device)].float().cpu()

    def _snapshot(self, name: str, sample: Tensor) -> Snapshot:
        return sampling.snapshot(
            self._parameter(name),
            self._synapses[name],
            sample=sample,
            step=self._clock,
            most=sampling.side(len(self._synapses)),
        )

    def _follow(self, name: str, layer: LayerHistory, index: int, *, born: int) -> None:
        """Follow one more of the sampled synapses, from the next sample on."""
        flat = int(self._flat(name)[index])
        place = sampling.place_in_matrix(flat, self._synapses[name])
        unknown = [MISSING] * len(layer.factors)
        layer.synapses.append(Synapse(index, place, born, array("f", unknown), array("f", unknown)))
