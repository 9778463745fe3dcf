"""Cases that need two processes: what each found is written down (see test_distributed).

Usage: torchrun --nproc-per-node 2 -m tests.plasticity.distributed_cases FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW

import biofx
from biofx.plasticity import Crystallize, FuzzyLearningRates, GradScheduler, Rejuvenate
from tests.plasticity.distributed_run import hand_over

torch.set_num_threads(1)
OFF = biofx.BioConfig(fuzzy_lr_distribution=biofx.Distribution.BASELINE)


def net(config: biofx.BioConfig = OFF) -> Any:
    torch.manual_seed(0)
    return biofx.transform(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)), config)


def inputs() -> Tensor:
    return torch.randn(8, 8, generator=torch.Generator().manual_seed(1))


def weights(model: nn.Module) -> list[Tensor]:
    whole = [getattr(p, "full_tensor", lambda p=p: p)() for p in model.parameters()]
    return [weight.detach().clone() for weight in whole]


def replicated(rule: Any, optimizer: Any, *, spread: bool) -> list[Tensor]:
    """Parameters everywhere, batches divided: gradients are sums that nobody has added up."""
    bio = net()
    if spread:
        mesh = init_device_mesh("cpu", (2,))
        distribute_module(bio, mesh)
    stepper = optimizer(bio.parameters(), lr=0.1)
    GradScheduler(bio, stepper, rules=[rule])
    for _ in range(4):
        x = distribute_tensor(inputs(), mesh, [Shard(0)]) if spread else inputs()
        stepper.zero_grad()
        bio(x).square().mean().backward()
        stepper.step()
    return weights(bio)


def embedded(rule: Any, apply: Any, *, spread: bool) -> list[Tensor]:
    """A parameter divided by rows whose gradient is whole."""
    torch.manual_seed(0)
    bio = biofx.transform(nn.Sequential(nn.Embedding(12, 4)), OFF)
    if spread:
        plan = {"0": RowwiseParallel(input_layouts=Replicate())}
        parallelize_module(bio, init_device_mesh("cpu", (2,)), plan)
    stepper = SGD(bio.parameters(), lr=0.1)
    GradScheduler(bio, stepper, rules=[rule], apply=apply)
    for _ in range(3):
        stepper.zero_grad()
        bio(torch.tensor([1, 3, 3, 11])).square().sum().backward()
        stepper.step()
    return weights(bio)


def after_a_forward() -> list[str]:
    """The names of the parameters with plasticity."""
    bio = net()
    fully_shard(bio[0])
    fully_shard(bio)
    optimizer = SGD(bio.parameters(), lr=0.1)
    with torch.no_grad():
        bio(inputs())
    scheduler = GradScheduler(bio, optimizer, rules=[FuzzyLearningRates(distribution="uniform")])
    bio(inputs()).sum().backward()
    optimizer.step()
    return sorted(scheduler.metrics())


def not_finite(rule: Any, where: int) -> str:
    """What this process is told of a weight that is not finite in one of them."""
    bio = net()
    fully_shard(bio)
    optimizer = SGD(bio.parameters(), lr=0.0)
    GradScheduler(bio, optimizer, rules=[rule])
    bio(inputs()).sum().backward()
    if dist.get_rank() == where:
        with torch.no_grad():
            bio[0].weight.to_local()[0, 0] = float("nan")
    try:
        optimizer.step()
    except biofx.PlasticityError as error:
        return str(error)
    return ""


def moments(zero: bool) -> list[Tensor]:
    bio = net()
    model = DistributedDataParallel(bio)
    settings = {"lr": 0.01, "momentum": 0.9}
    optimizer: Any = (
        ZeroRedundancyOptimizer(model.parameters(), SGD, **settings)
        if zero
        else SGD(model.parameters(), **settings)
    )
    GradScheduler(model, optimizer, rules=[Rejuvenate(d=4)])
    for _ in range(3):
        optimizer.zero_grad()
        model(inputs()).square().mean().backward()
        optimizer.step()
    return weights(bio)


def counted() -> list[float]:
    """How often units were active in a step of two forwards, in which one process is silent."""
    config = biofx.BioConfig(fuzzy_lr_distribution=biofx.Distribution.ACTIVITY)
    bio = biofx.transform(nn.Sequential(nn.Linear(4, 2, bias=False)), config)
    nn.init.ones_(bio.get_parameter("0.weight"))
    model = DistributedDataParallel(bio)
    optimizer = SGD(model.parameters(), lr=0.1)
    scheduler = GradScheduler(model, optimizer)
    x = torch.full((10, 4), float(dist.get_rank()))
    (model(x).sum() + model(x).sum()).backward()
    optimizer.step()
    found: list[float] = scheduler.state_dict()["state"]["FuzzyLearningRates"]["0.weight"][
        "counts"
    ].tolist()
    return found


EVERYTHING = biofx.BioConfig(
    crystallize_every=1,
    crystal_thresh=0.05,
    fuzzy_lr_distribution=biofx.Distribution.TEMPORAL,
    fuzzy_lr_dynamic=True,
    fuzzy_lr_update_freq=1,
    rejuvenate_every=2,
)


def carried(folder: Path, *, full: bool) -> list[list[Tensor]]:
    """Weights of an uninterrupted run, and of one whose optimizer state went through a file."""
    options = StateDictOptions(full_state_dict=full)
    place = folder / f"carried-{full}"

    def start() -> tuple[Any, Any, GradScheduler]:
        bio = net(EVERYTHING)
        fully_shard(bio[0])
        fully_shard(bio)
        optimizer = AdamW(bio.parameters(), lr=0.05)
        return bio, optimizer, GradScheduler(bio, optimizer)

    def state(bio: Any, optimizer: Any) -> dict[str, Any]:
        model, optim = get_state_dict(bio, optimizer, options=options)
        return {"model": model, "optim": optim}

    def learn(bio: Any, optimizer: Any) -> None:
        for row in range(3):
            optimizer.zero_grad()
            bio(inputs()[2 * row + dist.get_rank() :]).square().mean().backward()
            optimizer.step()

    bio, optimizer, _ = start()
    learn(bio, optimizer)
    dcp.save(state(bio, optimizer), checkpoint_id=place)
    learn(bio, optimizer)
    ends = [weights(bio)]
    bio, optimizer, scheduler = start()
    found = state(bio, optimizer)
    dcp.load(found, checkpoint_id=place)
    model, optim = found["model"], found["optim"]
    set_state_dict(bio, optimizer, model_state_dict=model, optim_state_dict=optim, options=options)
    assert scheduler.steps == [3]
    learn(bio, optimizer)
    return [*ends, weights(bio)]


def given_to_one() -> str:
    """What each process is told if a file's plasticity state has reached the first one alone."""
    bio = net()
    fully_shard(bio)
    optimizer = SGD(bio.parameters(), lr=0.1)
    if dist.get_rank() == 0:
        optimizer.param_groups[0]["plasticity"] = {}
    try:
        GradScheduler(bio, optimizer, rules=[FuzzyLearningRates(distribution="uniform")])
    except biofx.CheckpointError as error:
        return str(error)
    return ""


RULES = {
    "fuzzy": FuzzyLearningRates(nu=0.3, distribution="uniform"),
    "crystallize": Crystallize(threshold=0.5),
}
MAXIMA = {"uniform": Rejuvenate(), "lognormal": Rejuvenate(law="lognormal"),
          "capped": Rejuvenate(max_share=0.1), "crystallize": Crystallize()}  # fmt: skip


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    found = {
        "replicated": {
            f"{name} {kind.__name__}": replicated(rule, kind, spread=True)
            for name, rule in RULES.items()
            for kind in (SGD, AdamW)
        },
        "embedded": {
            f"{name} {apply}": embedded(rule, apply, spread=True)
            for name, rule in RULES.items()
            for apply in ("update", "gradient")
        },
        "after a forward": after_a_forward(),
        "not finite": {
            f"{name} {where}": not_finite(rule, where)
            for name, rule in MAXIMA.items()
            for where in (0, 1)
        },
        "moments": [moments(zero=False), moments(zero=True)],
        "counted": counted(),
        "given to one": given_to_one(),
        "carried": {str(full): carried(folder, full=full) for full in (False, True)},
    }
    hand_over(found, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
