"""The random generators that a model may draw from."""

import random
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes


def generator_state() -> dict[str, Any]:
    """State of every generator that a model may draw from."""
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if "numpy" in sys.modules:
        state["numpy"] = sys.modules["numpy"].random.get_state()
    return state


def restore_generators(state: Mapping[str, Any]) -> None:
    """Put the generators back to a state that `generator_state` gave."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "numpy" in state:
        sys.modules["numpy"].random.set_state(state["numpy"])


def restore_moved(state: Mapping[str, Any]) -> bool:
    """Put the generators back if one has moved since `generator_state`; whether one has."""
    with _disable_current_modes():  # fake tensors, say: the states themselves are real
        now = generator_state()
        moved = any(not _same(name, now[name], before) for name, before in state.items())
        if moved:
            restore_generators(state)
    return moved


def _same(name: str, now: Any, before: Any) -> bool:
    if name == "torch":
        return torch.equal(now, before)
    if name == "cuda":
        return all(map(torch.equal, now, before))
    if name == "numpy":
        (kind, keys, *rest), (other, others, *remaining) = now, before
        return bool((keys == others).all()) and (kind, rest) == (other, remaining)
    return bool(now == before)


class generators_kept:
    """Leaves the generators as they were."""

    def __enter__(self) -> None:
        self.state = generator_state()

    def __exit__(self, *_: object) -> None:
        restore_generators(self.state)
