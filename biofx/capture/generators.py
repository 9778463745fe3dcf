"""The random generators that a model may draw from."""

import random
import sys
from collections.abc import Mapping
from typing import Any

import torch


def generator_state() -> dict[str, Any]:
    """State of every generator that a model may draw from."""
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
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


class generators_kept:
    """Leaves the generators as they were."""

    def __enter__(self) -> None:
        self.state = generator_state()

    def __exit__(self, *_: object) -> None:
        restore_generators(self.state)
