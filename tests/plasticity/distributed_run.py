"""Trains with every rule in several processes, and writes what came of it (see test_distributed).

Usage: torchrun --nproc-per-node N -m tests.plasticity.distributed_run FOLDER
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import biofx
from biofx.plasticity import Context, GradScheduler, Rule
from biofx.plasticity.scheduler.scheduler import configured_rules
from tests.plasticity.table import OPTIMIZERS, RULES, Entry, batches, make

torch.set_num_threads(1)
BEFORE, AFTER = 3, 3


class Spy(Rule):
    """Keeps the local draws and their places."""

    def observe(self, context: Context) -> None:
        context.state["draw"] = context.uniform("spy")
        context.state["index"] = context.index


def train(model: nn.Module, optimizer: Any, data: list[Any], *, rank: int, ranks: int) -> None:
    for x, y in data:
        rows = slice(rank * len(x) // ranks, (rank + 1) * len(x) // ranks)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[rows]), y[rows]).backward()
        optimizer.step()


def whole(value: Any) -> Any:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def distribute(bio: nn.Module, mode: str, ranks: int) -> tuple[nn.Module, int]:
    """The model as `mode` distributes it, and over how many ranks batches are divided."""
    if mode == "one":
        return bio, 1
    if mode == "ddp":
        return DistributedDataParallel(bio), ranks
    if mode == "fsdp":
        mesh, shares = init_device_mesh("cpu", (ranks,)), ranks
    else:
        names = ("replicate" if mode == "hybrid" else "data", "shard")
        both = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=names)
        mesh, shares = (both, ranks) if mode == "hybrid" else (both["data"], 2)
        if mode == "tensor":  # rows of `fc` over one dimension of the mesh, then over the other
            plan = {"fc": ColwiseParallel(output_layouts=Replicate())}
            parallelize_module(bio, both["shard"], plan)
    for name in ("conv", "grouped", "fc"):  # `up` stays with the root
        fully_shard(bio.get_submodule(name), mesh=mesh)
    return fully_shard(bio, mesh=mesh), shares


def runs(entry: Entry, mode: str) -> bool:
    """Tensor parallelism gives a layer a part of its outputs, and nobody counts the others."""
    return not (mode == "tensor" and "activity" in entry.name)


def run(entry: Entry, mode: str, folder: Path) -> dict[str, Any]:
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    bio = make(entry.config)
    synapses = biofx.info(bio).synapses
    model, shares = distribute(bio, mode, ranks)
    share = rank if shares == ranks else rank // (ranks // 2)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    rules = [*configured_rules(), Spy()]
    scheduler = GradScheduler(model, optimizer, rules=rules, seed=11)
    data = batches(BEFORE + AFTER)
    with counting() as collectives:
        train(model, optimizer, data[:BEFORE], rank=share, ranks=shares)
    states = {"model": model.state_dict(), "scheduler": scheduler.state_dict()}
    if mode in ("fsdp", "hybrid", "tensor"):
        dcp.save(states, checkpoint_id=folder / f"{mode}-{entry.name}")
    train(model, optimizer, data[BEFORE:], rank=share, ranks=shares)
    result = {
        "weights": {name: whole(p.detach()).clone() for name, p in bio.named_parameters()},
        "states": flat(scheduler),
        "steps": scheduler.steps,
        "collectives": len(collectives),
        "shapes": {
            name: tuple(getattr(p, "_local_tensor", p).shape)
            for name, p in bio.named_parameters()
            if name in synapses
        },
    }
    if mode in ("fsdp", "hybrid", "tensor"):
        result["resumed"] = resume(entry, mode, folder, rules)
    return result


def flat(scheduler: GradScheduler) -> dict[str, Any]:
    return {
        f"{key} {name} {field}": whole(value)
        for key, parameters in scheduler.state_dict()["state"].items()
        for name, state in parameters.items()
        for field, value in state.items()
    }


def resume(entry: Entry, mode: str, folder: Path, rules: list[Rule]) -> dict[str, Any]:
    """States of a fresh scheduler on a fresh model, from the distributed checkpoint."""
    bio = make(entry.config)
    model, _ = distribute(bio, mode, dist.get_world_size())
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    scheduler = GradScheduler(model, optimizer, rules=rules, seed=11)
    state = {"model": model.state_dict(), "scheduler": scheduler.state_dict()}
    dcp.load(state, checkpoint_id=folder / f"{mode}-{entry.name}")
    scheduler.load_state_dict(state["scheduler"])
    assert scheduler.steps == [BEFORE]
    return flat(scheduler)


@contextmanager
def counting() -> Iterator[list[Any]]:
    """Records all-reduces called from Python: the schedulers', and no engine's but HSDP's."""
    calls: list[Any] = []
    original = dist.all_reduce

    def counted(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(tensor.numel())
        return original(tensor, *args, **kwargs)

    dist.all_reduce = counted
    try:
        yield calls
    finally:
        dist.all_reduce = original


def hand_over(found: Any, folder: Path) -> NoReturn:
    """Writes down what this rank found, and ends without the interpreter's shutdown.

    Meshes keep gloo's threads alive beyond their group, and a thread that lets go of a tensor
    during the shutdown aborts the process (github.com/pytorch/pytorch/pull/179291).
    """
    torch.save(found, folder / f"{dist.get_rank()}.pt")
    dist.monitored_barrier()
    os._exit(0)


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    ranks = dist.get_world_size()
    modes = ["ddp", "fsdp"] + (["hybrid", "tensor"] if ranks == 4 else [])
    results = {
        mode: {entry.name: run(entry, mode, folder) for entry in RULES if runs(entry, mode)}
        for mode in modes
    }
    hand_over(results, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
