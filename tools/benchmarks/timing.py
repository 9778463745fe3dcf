"""Medians of interleaved calls: a busy machine slows all of them alike, so ratios hold."""

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from biofx.plasticity.kernels.compiled import KERNELS

TOOLS = Path(__file__).resolve().parents[1]
Call = Callable[[], object]


@dataclass(frozen=True)
class Effort:
    """How long one comparison may take: at least `least` rounds, then until `seconds` are over."""

    seconds: float
    least: int
    most: int
    quick: bool = False


FULL = Effort(seconds=5.0, least=3, most=100)
QUICK = Effort(seconds=0.5, least=2, most=5, quick=True)


def interleaved(
    calls: Mapping[str, Call],
    effort: Effort,
    *,
    prepare: Callable[[str], object] | None = None,
    warm: int = 2,
    streak: int = 1,
) -> dict[str, float]:
    """Median seconds of each call, where calls take turns.

    Args:
        calls: by name.
        effort: how many rounds.
        prepare: done before each call, with its name; not timed.
        warm: calls of each before the first round.
        streak: how often each is called at its turn. The first of several is not counted: it finds
            what the others have left in the caches.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        for _ in range(warm):
            if prepare is not None:
                prepare(name)
            try:
                call()
            except Exception as error:
                error.add_note(f"while warming up {name!r}")
                raise
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        rounds = 0
        while rounds < effort.least or (
            rounds < effort.most and time.perf_counter() - start < effort.seconds
        ):
            rounds += 1
            for name, call in calls.items():
                for place in range(streak):
                    if prepare is not None:
                        prepare(name)
                    begin = time.perf_counter()
                    call()
                    if place or streak == 1:
                        taken[name].append(time.perf_counter() - begin)
    finally:
        gc.enable()
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def kernels_compiled() -> int:
    """Plasticity kernels that this process has compiled."""
    return len(KERNELS)


def allocations(call: Call) -> list[int]:
    """Bytes of each allocation (and, below 0, release) of memory for tensors, in their order."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return [size for _, size in changes]


def worker(name: str, arguments: Mapping[str, Any], **environment: str) -> dict[str, Any]:
    """Run a function of `tools/bench.py`'s WORKERS in a process of its own.

    Its answer is the last line that it prints; a failure is {"error": the last line of stderr}.
    """
    threads = ("--threads", str(torch.get_num_threads()))
    command = [sys.executable, str(TOOLS / "bench.py"), *threads]
    run = subprocess.run(
        [*command, "--worker", name, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    if run.returncode:
        return {"error": (run.stderr.strip().splitlines() or ["no message"])[-1]}
    answer: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return answer
