"""The optimizers that tools/optimizers tries, by library."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Make = Callable[[list[nn.Parameter]], Any]


@dataclass(frozen=True)
class Entry:
    """One optimizer.

    Attributes:
        library, name: of it.
        make: makes it for some parameters, without weight decay.
        skip: why it is not tried, or None.
    """

    library: str
    name: str
    make: Make
    skip: str | None = None


def torch_entries() -> list[Entry]:
    optim = torch.optim
    options: dict[str, dict[str, Any]] = {
        "SGD": {"lr": 1e-2},
        "SGD, momentum": {"lr": 1e-3, "momentum": 0.9},
        "SGD, nesterov": {"lr": 1e-3, "momentum": 0.9, "nesterov": True},
        "Adam": {},
        "Adam, amsgrad": {"amsgrad": True},
        "AdamW": {"weight_decay": 0.0},
        "AdamW, fused": {"weight_decay": 0.0, "fused": True},
        "NAdam": {},
        "RAdam": {},
        "Adamax": {},
        "Adadelta": {},
        "Adagrad": {"initial_accumulator_value": 0.1},
        "Adafactor": {},
        "RMSprop": {"centered": True},
        "Rprop": {"lr": 1e-3},
        "ASGD": {"lambd": 0.0},
        "Muon": {"weight_decay": 0.0},
    }
    return [
        Entry("torch", name, _maker(getattr(optim, name.split(",")[0]), given))
        for name, given in options.items()
    ]


def schedulefree_entries() -> list[Entry]:
    library = importlib.import_module("schedulefree")
    names = (
        "SGDScheduleFree", "AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFreeClosure",
        "AdamWScheduleFreeClosure", "AdamWScheduleFreePaper", "AdamWScheduleFreeReference",
    )  # fmt: skip
    entries = [Entry("schedulefree", name, _maker(getattr(library, name), {})) for name in names]
    warm = _maker(library.AdamWScheduleFree, {"warmup_steps": 20})
    return [*entries, Entry("schedulefree", "AdamWScheduleFree, warm-up", warm)]


def torchao_entries() -> list[Entry]:
    library = importlib.import_module("torchao.optim")
    names = ("Adam8bit", "AdamW8bit", "Adam4bit", "AdamW4bit", "AdamFp8", "AdamWFp8")
    return [Entry("torchao", name, _maker(getattr(library, name), {})) for name in names]


def bitsandbytes_entries() -> list[Entry]:
    library = importlib.import_module("bitsandbytes").optim
    eight = {"min_8bit_size": 1}
    given: dict[str, dict[str, Any]] = {
        "AdamW": {}, "AdamW8bit": eight, "Adam8bit": eight, "Lion8bit": eight,
        "SGD8bit": {"lr": 1e-3, "momentum": 0.9, **eight}, "RMSprop8bit": eight,
        "Adagrad8bit": eight, "AdEMAMix8bit": eight,
    }  # fmt: skip
    return [
        Entry("bitsandbytes", name, _maker(getattr(library, name), options))
        for name, options in given.items()
    ]


def single_entries() -> list[Entry]:
    """Optimizers that are a package each."""
    lion = importlib.import_module("lion_pytorch").Lion
    prodigy = importlib.import_module("prodigyopt").Prodigy
    return [
        Entry("lion-pytorch", "Lion", _maker(lion, {})),
        Entry("prodigyopt", "Prodigy", _maker(prodigy, {})),
        Entry("prodigyopt", "Prodigy, slice_p=11", _maker(prodigy, {"slice_p": 11})),
    ]


# What these need is not to be had from a list of parameters and their gradients.
NEEDING = {
    "adahessian": "takes second derivatives of the loss",
    "sophiah": "takes second derivatives of the loss",
    "adalomo": "moves weights within the backward pass; its `step` is never called",
    "lomo": "moves weights within the backward pass; its `step` is never called",
    "adammini": "is made from a model",
    "alig": "takes the loss",
    "bsam": "takes the size of the data",
    "demo": "takes a process group",
    "distributedmuon": "takes a process group",
    "ranger21": "takes the number of steps",
    "muonclip": "is made from a model",
    "spectralsphere": "takes seconds a step",
}
# These tell matrices from the rest by a flag of their groups.
FLAGGED = ("muon", "adamuon", "adago", "normuon")


def pytorch_optimizer_entries() -> list[Entry]:
    library = importlib.import_module("pytorch_optimizer")
    entries = []
    for name in sorted(library.get_supported_optimizers()):
        cls = library.load_optimizer(name)
        options = {"use_muon": True} if name in FLAGGED else {}
        make = _maker(cls, {}, group=options)
        entries.append(Entry("pytorch_optimizer", cls.__name__, make, NEEDING.get(name)))
    # torch's own optimizer takes the factors, inside of it
    make = _around(library.Lookahead)
    return [*entries, Entry("pytorch_optimizer", "Lookahead(AdamW)", make)]


LIBRARIES: dict[str, Callable[[], list[Entry]]] = {
    "torch": torch_entries,
    "schedulefree": schedulefree_entries,
    "torchao": torchao_entries,
    "bitsandbytes": bitsandbytes_entries,
    "single": single_entries,
    "pytorch_optimizer": pytorch_optimizer_entries,
}


def _maker(cls: Any, options: dict[str, Any], *, group: dict[str, Any] | None = None) -> Make:
    def make(parameters: list[nn.Parameter]) -> Any:
        given: Any = parameters if not group else [{"params": parameters, **group}]
        try:
            return cls(given, **{"weight_decay": 0.0, **options})
        except TypeError:  # it decays nothing
            return cls(given, **options)

    return make


def _around(cls: Any) -> Make:
    def make(parameters: list[nn.Parameter]) -> Any:
        return cls(torch.optim.AdamW(parameters, weight_decay=0.0))

    return make
