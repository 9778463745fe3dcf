"""Several real processes: one run, whatever the way in which it is divided."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD, AdamW

from . import distributed_cases, distributed_run
from .table import IDS, RULES, Entry

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
MODES = [(2, "ddp"), (2, "fsdp"), (4, "ddp"), (4, "fsdp"), (4, "hybrid"), (4, "tensor")]


def launch(program: str, processes: int, folder: Path) -> list[Any]:
    """What each rank has found."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", "-m", f"tests.plasticity.{program}"]
    done = subprocess.run(
        [*command, folder],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
        timeout=900,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """{processes: what each rank found}."""
    return {
        processes: launch(
            "distributed_run", processes, tmp_path_factory.mktemp(f"processes{processes}")
        )
        for processes in (2, 4)
    }


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each of two ranks found."""
    return launch("distributed_cases", 2, tmp_path_factory.mktemp("cases"))


@pytest.mark.parametrize("entry", RULES, ids=IDS)
@pytest.mark.parametrize(("processes", "mode"), MODES)
def test_is_one_run(results: Any, entry: Entry, processes: int, mode: str, tmp_path: Path) -> None:
    """Ranks agree to the bit; with one process but for rounding, all decisions being the same."""
    if not distributed_run.runs(entry, mode):
        pytest.skip("not with tensor parallelism")
    alone = distributed_run.run(entry, "one", tmp_path)
    ranks = [rank[mode][entry.name] for rank in results[processes]]
    for rank in ranks:
        assert rank["steps"] == alone["steps"]
        for name, value in rank["weights"].items():
            assert torch.equal(value, ranks[0]["weights"][name]), name
            torch.testing.assert_close(value, alone["weights"][name], rtol=1e-4, atol=1e-6)
        assert rank["states"].keys() == alone["states"].keys()
        for name, value in rank["states"].items():
            expected = alone["states"][name]
            if not isinstance(value, torch.Tensor):
                assert value == expected
            elif value.is_floating_point() and "draw" not in name:
                torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
            else:  # draws, counts of dampenings, indices: exactly the slices of the whole
                assert torch.equal(value, expected), name
        if "resumed" in rank:
            assert rank["resumed"].keys() >= {
                name for name in rank["states"] if not name.startswith("Spy")
            }


def test_uneven_and_empty_shards_were_among_them(results: Any) -> None:
    shapes = [rank["fsdp"]["uniform"]["shapes"]["fc.weight"] for rank in results[4]]
    assert shapes == [(2, 4), (2, 4), (1, 4), (0, 4)]
    shapes = [rank["tensor"]["uniform"]["shapes"]["fc.weight"] for rank in results[4]]
    assert sorted(shapes) == [(1, 4), (1, 4), (1, 4), (2, 4)]


def test_nobody_communicates_for_randomness(results: Any) -> None:
    """Collectives per step: none for drawn factors, one where a global statistic is needed."""
    counts = {
        name: result["collectives"] / distributed_run.BEFORE
        for name, result in results[2][0]["fsdp"].items()
    }
    for name in ("uniform", "normal", "gamma", "beta", "layer_adaptive", "temporal", "dale"):
        assert counts[name] == 0, name
    assert counts["crystallize"] == counts["volume"] == 1
    assert counts["weight_adaptive"] == 1 / distributed_run.BEFORE  # when they are drawn
    assert counts["rejuvenate"] == 1 / distributed_run.BEFORE  # one rejuvenation
    assert counts["rejuvenate-capped"] == 2 / distributed_run.BEFORE  # and one sum
    ddp = {name: result["collectives"] for name, result in results[2][0]["ddp"].items()}
    assert ddp["activity"] == distributed_run.BEFORE
    by_activity = ("activity", "unit", "everything")
    assert ddp["unit-turnover"] == distributed_run.BEFORE
    assert all(n == 0 for name, n in ddp.items() if not any(a in name for a in by_activity))


@pytest.mark.parametrize("kind", [SGD, AdamW])
@pytest.mark.parametrize("rule", distributed_cases.RULES)
def test_gradients_that_nobody_has_added_up(cases: Any, rule: str, kind: Any) -> None:
    expected = distributed_cases.replicated(distributed_cases.RULES[rule], kind, spread=False)
    first, second = (rank["replicated"][f"{rule} {kind.__name__}"] for rank in cases)
    for one, other, alone in zip(first, second, expected, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("apply", ["update", "gradient"])
@pytest.mark.parametrize("rule", distributed_cases.RULES)
def test_whole_gradients_of_divided_parameters(cases: Any, rule: str, apply: str) -> None:
    expected = distributed_cases.embedded(distributed_cases.RULES[rule], apply, spread=False)
    for rank in cases:
        for found, alone in zip(rank["embedded"][f"{rule} {apply}"], expected, strict=True):
            torch.testing.assert_close(found, alone)


def test_a_scheduler_made_after_a_forward(cases: Any) -> None:
    for rank in cases:
        assert rank["after a forward"] == ["0.weight", "2.weight"]


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("rule", distributed_cases.MAXIMA)
def test_weights_that_are_not_finite_anywhere(cases: Any, rule: str, where: int) -> None:
    for rank in cases:
        assert "0.weight holds 1 of 128 weights" in rank["not finite"][f"{rule} {where}"]


def test_a_divided_optimizer_forgets_replaced_synapses(cases: Any) -> None:
    for rank in cases:
        for whole, divided in zip(*rank["moments"], strict=True):
            assert torch.equal(whole, divided)


def test_activity_is_that_of_all_processes(cases: Any) -> None:
    for rank in cases:
        assert rank["counted"] == [20.0, 20.0]


@pytest.mark.parametrize("full", ["False", "True"])
def test_a_sharded_optimizers_state_carries_plasticity(cases: Any, full: str) -> None:
    for rank in cases:
        for whole, resumed in zip(*rank["carried"][full], strict=True):
            assert torch.equal(whole, resumed)


def test_a_state_that_reached_one_process_alone_is_refused_by_all(cases: Any) -> None:
    for rank in cases:
        assert "1 of 2 processes were given plasticity state" in rank["given to one"]
