"""What the rules do, written to a logger: TensorBoard's, Weights & Biases', MLflow's or alike."""

import sys
from typing import Any

import torch
from torch import Tensor

from biofx.errors import PlasticityError
from biofx.plasticity import GradScheduler
from biofx.plasticity.numerics.shards import spread
from biofx.plasticity.scheduler.metrics import flat, tag

SAMPLE = 16_384  # synapses of a layer whose factors make its histogram
BINS = 64


def log(
    scheduler: GradScheduler,
    writer: Any,
    step: int | None = None,
    *,
    histograms: bool = True,
) -> None:
    """Write `GradScheduler.scalars`, and a histogram of each parameter's factors.

        >>> log(scheduler, SummaryWriter("runs/1"), step)

    Args:
        scheduler: of the run.
        writer: told by its methods. ``add_scalar`` and ``add_histogram``: a TensorBoard
            `SummaryWriter`. ``log_metrics`` (and ``log_dict``): the module `mlflow`, or a Lightning
            logger; a histogram is a JSON file, where ``log_dict`` writes one. ``log``: the module
            `wandb`, or its run.
        step: of the run; None takes the optimizer's.
        histograms: the factors', under ``plasticity/<layer>/factors``, from at most 16,384
            synapses.

    Raises:
        PlasticityError: the writer has none of these methods, or the scheduler is none.
    """
    if not isinstance(scheduler, GradScheduler):
        raise PlasticityError(f"expected a GradScheduler, got {type(scheduler).__name__}")
    step = max(scheduler.steps, default=0) if step is None else step
    metrics = scheduler.metrics()
    scalars = flat(metrics)
    samples = {name: _sample(scheduler, name) for name in metrics} if histograms else {}
    samples = {f"{tag(name)}/factors": values for name, values in samples.items() if values.numel()}
    if callable(getattr(writer, "add_scalar", None)):
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)
        for name, values in samples.items():
            writer.add_histogram(name, values, step)
    elif callable(getattr(writer, "log_metrics", None)):
        writer.log_metrics(scalars, step=step)
        if callable(getattr(writer, "log_dict", None)):
            for name, values in samples.items():
                counts, edges = _histogram(values)
                content = {"counts": counts, "edges": edges, "step": step}
                writer.log_dict(content, f"{name}/{step:08d}.json")
    elif callable(getattr(writer, "log", None)):
        kind = getattr(writer, "Histogram", None) or getattr(
            sys.modules.get("wandb"), "Histogram", None
        )
        drawn = {
            name: kind(np_histogram=_histogram(values))
            for name, values in samples.items()
            if kind is not None
        }
        writer.log({**scalars, **drawn}, step=step)
    else:
        raise PlasticityError(
            f"{type(writer).__name__} has none of the methods add_scalar (TensorBoard), "
            "log_metrics (MLflow, Lightning) and log (Weights & Biases)"
        )


def _sample(scheduler: GradScheduler, name: str) -> Tensor:
    """Some of the factors of one parameter, float32 on the CPU."""
    factors = scheduler.factors(name).flatten()
    return factors[spread(factors.numel(), SAMPLE).to(factors.device)].cpu()


def _histogram(values: Tensor) -> tuple[list[float], list[float]]:
    """Counts, and their one edge more."""
    counts, edges = torch.histogram(values[values.isfinite()], BINS)
    return counts.tolist(), edges.tolist()
