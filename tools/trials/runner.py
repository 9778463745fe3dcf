"""Runs trials in processes, keeps each result at once, and goes on where it stopped."""

import concurrent.futures
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from trials.data import load
from trials.plan import Trial
from trials.protocols import PROTOCOLS

Results = dict[str, dict[str, Any]]


class Store:
    """Results of trials by their keys, in a file with one line each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: Results = {}
        self._cut = False
        if path.exists():
            text = path.read_text(encoding="utf-8")
            self._cut = bool(text) and not text.endswith("\n")
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                self.results[entry["key"]] = entry["result"]

    def add(self, key: str, result: dict[str, Any]) -> None:
        """Keep a result, in the file too."""
        self.results[key] = result
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            if self._cut:  # the last line of a run that was killed
                file.write("\n")
                self._cut = False
            file.write(json.dumps({"key": key, "result": result}) + "\n")


def start(data: str) -> None:
    """In each process: one thread, and the images."""
    torch.set_num_threads(1)
    load(data)


def perform(trial: Trial, data: str) -> tuple[dict[str, Any], float]:
    """One trial's result, and the seconds that it took."""
    begun = time.monotonic()
    result = PROTOCOLS[trial.protocol](load(data), trial.condition, trial.seed, **trial.settings)
    return result, time.monotonic() - begun


class Progress:
    """Tells how much is done and how long the rest will take, by what has been measured."""

    def __init__(self, planned: list[Trial], say: Callable[[str], None], workers: int) -> None:
        self.planned, self.done, self.workers = len(planned), 0, workers
        self._left = Counter(trial.experiment for trial in planned)
        self.seconds: dict[str, list[float]] = {}
        self._say = say
        self._told = 0.0

    def skip(self, trials: Iterable[Trial]) -> None:
        """These have a result from an earlier run."""
        for trial in trials:
            self.done += 1
            self._left[trial.experiment] -= 1

    def advance(self, trial: Trial, seconds: float) -> None:
        """A trial is done; others wait."""
        self.skip([trial])
        self.seconds.setdefault(trial.experiment, []).append(seconds)
        now = time.monotonic()
        if now - self._told < 5 and self.done < self.planned:
            return
        self._told = now
        known = [value for values in self.seconds.values() for value in values]
        usual = sum(known) / len(known)
        rest = 0.0
        for experiment, count in self._left.items():
            own = self.seconds.get(experiment)
            rest += count * (sum(own) / len(own) if own else usual)
        minutes = rest / self.workers / 60
        name = trial.condition.name or trial.experiment
        self._say(
            f"{self.done} of {self.planned} trials, {trial.experiment}: {name}, seed {trial.seed}; "
            f"about {minutes:.0f} min left"
        )


def unique(trials: Iterable[Trial]) -> list[Trial]:
    """Without those that do what an earlier one does: experiments share their controls."""
    found: dict[str, Trial] = {}
    for trial in trials:
        found.setdefault(trial.key, trial)
    return list(found.values())


def run(
    trials: list[Trial],
    store: Store,
    *,
    data: str,
    workers: int,
    progress: Progress,
    until: float = math.inf,
) -> None:
    """Perform the trials that have no result yet.

    Args:
        trials: all different.
        store: keeps the results.
        data: the images' source.
        workers: processes.
        progress: is told of each.
        until: from this time of `time.monotonic()` on none is begun.
    """
    waiting = {trial.key: trial for trial in trials if trial.key not in store.results}
    progress.skip([trial for trial in trials if trial.key not in waiting])
    if not waiting:
        return
    if workers == 1:
        start(data)
        for trial in waiting.values():
            if time.monotonic() >= until:
                return
            result, seconds = perform(trial, data)
            store.add(trial.key, result)
            progress.advance(trial, seconds)
        return
    with concurrent.futures.ProcessPoolExecutor(
        workers, initializer=start, initargs=(data,)
    ) as pool:
        futures = {pool.submit(perform, trial, data): trial for trial in waiting.values()}
        try:
            for future in concurrent.futures.as_completed(futures):
                if time.monotonic() >= until:
                    for other in futures:
                        other.cancel()
                if future.cancelled():
                    continue
                trial = futures[future]
                result, seconds = future.result()
                store.add(trial.key, result)
                progress.advance(trial, seconds)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
