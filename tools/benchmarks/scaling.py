"""Cost per parameter over four decades of model size, and collectives per step under FSDP."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import biofx
from benchmarks.memory import tensors
from benchmarks.models import mlp
from benchmarks.report import Report, Table, figure
from benchmarks.steps import ALL, RULES
from benchmarks.timing import Effort, interleaved, kernels_compiled, worker
from biofx.plasticity import FuzzyLearningRates, Rejuvenate, Rule
from biofx.plasticity.kernels.compiled import can_compile

SIZES = (10**4, 10**5, 10**6, 10**7, 10**8)
LAYERS = 4
SHOWN = ("fuzzy", ALL, "rejuvenate")
SHARDED: dict[str, Callable[[], list[Rule]]] = {
    **RULES,
    "rejuvenate, lognormal": lambda: [Rejuvenate(law="lognormal")],
    "rejuvenate, capped": lambda: [Rejuvenate(max_share=0.01)],
    "fuzzy, WEIGHT_ADAPTIVE": lambda: [
        FuzzyLearningRates(distribution="weight_adaptive", dynamic=True, update_every=1)
    ],
}


def scaling(effort: Effort) -> Report:
    columns = ["parameters", "SGD step", *(f"{rule}, {mode}" for mode in MODES for rule in SHOWN)]
    speed = Table("Time per parameter and step (nanoseconds)", columns)
    size = Table("Bytes of plasticity state per weight", ["parameters", *SHOWN])
    for count in SIZES[:2] if effort.quick else SIZES:
        found, states, exact = measure(count, effort)
        speed.rows.append([f"{exact:,}", *(figure(s / exact * 1e9) for s in found)])
        size.rows.append([f"{exact:,}", *(f"{state / exact:.3g}" for state in states)])
    made = kernels_compiled()
    speed.note = (
        f"Networks of {LAYERS} square linear layers without biases, plain SGD, compiled "
        f"({made} kernels). Each column but the first is "
        "what the rules add to the step."
    )
    return Report([speed, size, fsdp(effort)])


MODES = ("gradient", "update")


def measure(count: int, effort: Effort) -> tuple[list[float], list[int], int]:
    """(seconds: SGD, then what each rule adds), bytes of state, exact number of parameters."""
    width = max(1, round(math.sqrt(count / LAYERS)))
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(LAYERS)))
    bio = biofx.transform(model)
    parameters = list(bio.parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    optimizers = {"SGD": torch.optim.SGD(parameters, lr=1e-3)}
    schedulers = {}
    for rule in SHOWN:
        for mode in MODES:
            own = optimizers[f"{rule}, {mode}"] = torch.optim.SGD(parameters, lr=1e-3)
            schedulers[rule] = biofx.GradScheduler(
                bio, own, rules=RULES[rule](), apply=mode, compile=can_compile(parameters[0].device)
            )
    calls = {name: optimizer.step for name, optimizer in optimizers.items()}
    weights, grads = [p.detach().clone() for p in parameters], [p.grad for p in parameters]
    kept = [grad.clone() for grad in grads]

    def restore(name: str) -> None:
        """Repeated scaling would make weights and gradients denormal, and slow."""
        with torch.no_grad():
            torch._foreach_copy_(parameters, weights)
            torch._foreach_copy_(grads, kept)

    found = interleaved(calls, effort, prepare=restore)
    states = [
        sum(t.nbytes for t in tensors(schedulers[rule].state_dict()["state"])) for rule in SHOWN
    ]
    plain = found["SGD"]
    added = [max(found[f"{rule}, {mode}"] - plain, 0.0) for mode in MODES for rule in SHOWN]
    return [plain, *added], states, sum(p.numel() for p in parameters)


def fsdp(effort: Effort) -> Table:
    """What one step sends between 64 processes, counted on one of them."""
    columns = ["rules", "all-reduces per step", "bytes per step", "bytes per weight tensor"]
    table = Table("Collectives of plasticity under fully_shard, 64 ranks", columns)
    for name in list(SHARDED)[:1] if effort.quick else SHARDED:
        found = worker("collectives", {"rules": name})
        if "error" in found:
            table.rows.append([name, found["error"][:80], "–", "–"])
            continue
        each = figure(found["bytes"] / found["tensors"])
        table.rows.append([name, str(found["calls"]), f"{found['bytes']:,}", each])
    table.note = (
        "Counted in a process that is rank 0 of 64 with PyTorch's `fake` backend, which sends "
        "nothing: a network of 12 linear layers, each sharded by `fully_shard`; the third step."
    )
    return table


def collectives(arguments: dict[str, Any]) -> dict[str, int]:
    """Worker: all-reduces of one optimizer step on one of 64 ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=64, store=FakeStore())
    mesh = init_device_mesh("cpu", (64,))
    bio = biofx.transform(mlp(*[128] * 13))
    for layer in bio.children():
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(bio, mesh=mesh)
    optimizer = torch.optim.SGD(bio.parameters(), lr=1e-3)
    rules = SHARDED[arguments["rules"]]()
    biofx.GradScheduler(bio, optimizer, rules=rules, compile=False)
    sent: list[int] = []
    send = dist.all_reduce

    def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(tensor.nbytes)
        return send(tensor, *args, **kwargs)

    dist.all_reduce = counted
    for _ in range(3):
        for parameter in bio.parameters():
            parameter.grad = torch.randn_like(parameter) * 1e-3
        sent.clear()
        optimizer.step()
    tensors = len(biofx.info(bio).synapses)
    return {"calls": len(sent), "bytes": sum(sent), "tensors": tensors}
