"""Several real processes: one run, whatever the way in which it is divided."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from . import distributed_run
from .table import IDS, RULES, Entry

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
MODES = [(2, "ddp"), (2, "fsdp"), (4, "ddp"), (4, "fsdp"), (4, "hybrid"), (4, "tensor")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """{processes: what each rank found}."""
    found = {}
    for processes in (2, 4):
        folder = tmp_path_factory.mktemp(f"processes{processes}")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}", "-m", "tests.plasticity.distributed_run"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, folder],
            cwd=ROOT,
            env=environment,
            timeout=900,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-6000:]
        found[processes] = [
            torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)
        ]
    return found


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
    ddp = {name: result["collectives"] for name, result in results[2][0]["ddp"].items()}
    assert ddp["activity"] == distributed_run.BEFORE
    assert all(count == 0 for name, count in ddp.items() if "activity" not in name)
