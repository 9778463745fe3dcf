"""The evidence: its statistics, its files, its seeds; what it measures is not judged."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import biofx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import evidence as evidence_tool  # noqa: E402
from trials import data, page, plan, runner, statistics  # noqa: E402


def evidence(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "evidence.py"), *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "COLUMNS": "100", "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("count", [3, 5, 12])
def test_intervals_are_those_of_t(count: int) -> None:
    values = np.random.default_rng(count).normal(0.3, 2, count)
    found = statistics.interval(list(values))
    low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert found.half is not None
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    others = values + np.arange(count)
    difference = statistics.paired(list(others), list(values))
    assert difference.mean == pytest.approx(np.arange(count).mean())


def test_too_few_seeds_get_no_interval() -> None:
    few = statistics.paired([0.5, 0.6], [0.4, 0.4])
    assert few.half is None
    assert str(few) == "+0.150 (no interval: 2 seeds)"
    assert few.verdict == "too few seeds for an interval (it takes 3)"
    assert statistics.interval([0.1, -0.1, 0.05]).verdict == "no effect found"
    assert statistics.interval([0.1, 0.11, 0.12]).verdict == "better"
    assert statistics.interval([-0.1, -0.11, -0.12]).verdict == "worse"


@pytest.mark.parametrize("quick", [True, False])
def test_seeds_that_choose_are_not_reported(quick: bool) -> None:
    experiments = plan.experiments(quick=quick, mnist=False)
    names = [experiment.name for experiment in experiments]
    assert len(set(names)) == len(names)
    choosing = 0
    for experiment in experiments:
        reported = {trial.seed for trial in experiment.reported({})}
        chooses = {trial.seed for trial in experiment.chosen_among()}
        assert not reported & chooses
        assert reported == set(range(plan.REPORTED, plan.REPORTED + experiment.seeds))
        choosing += len(chooses)
        keys = [trial.key for trial in experiment.reported({})]
        assert len(set(keys)) == len(keys)
        families = [family.name for family in experiment.families]
        assert set(experiment.baseline) <= set(families)
    assert choosing


def test_the_whole_of_the_ablation_is_the_papers_configuration() -> None:
    for experiment in plan.experiments(quick=False, mnist=False):
        if experiment.protocol == "paper":
            families = {family.name: family.candidates[0] for family in experiment.families}
            config = families["fuzzy + rejuvenate + split"].config
            assert biofx.BioConfig(**config) == biofx.BioConfig.paper()


def test_a_name_stands_for_what_begins_with_it() -> None:
    def names(only: str) -> list[str]:
        return [e.name for e in evidence_tool.parse(["--only", only]).experiments]

    assert names("paper,dale") == ["dale", "paper-FCNet", "paper-ResNet"]
    assert names("permuted") == ["permuted"]


def test_controls_are_always_drawn(tmp_path: Path) -> None:
    from trials import figures

    runs = {name: [[end, end]] * 3 for name, end in (("plain", 0.1), ("new", 0.9), ("bad", 0.2))}
    figures.over_tasks(runs, tmp_path / "a.svg", ylabel="accuracy", controls=("plain",))
    drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert ">plain<" in drawn
    assert "not shown: bad ends at 0.20" in drawn


def test_a_run_that_was_stopped_reports_whole_seeds() -> None:
    experiment = next(e for e in plan.experiments(quick=True, mnist=False) if e.name == "labels")
    chosen = {family.name: family.candidates[-1] for family in experiment.families}
    results: dict[str, Any] = {trial.key: {} for trial in experiment.reported(chosen)}
    assert page.finished(experiment, chosen, results).seeds == 0  # nothing has been chosen
    results |= {trial.key: {} for trial in experiment.chosen_among()}
    assert page.finished(experiment, chosen, results).seeds == 2
    del results[list(experiment.reported(chosen))[-1].key]
    assert page.finished(experiment, chosen, results).seeds == 1


def idx(folder: Path, images: Any, labels: Any, *, packed: bool) -> None:
    for name, values in (("t10k-images-idx3-ubyte", images), ("t10k-labels-idx1-ubyte", labels)):
        head = b"\0\0\x08" + bytes([values.ndim]) + np.array(values.shape, ">i4").tobytes()
        content = head + values.astype(np.uint8).tobytes()
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


@pytest.mark.parametrize("packed", [True, False])
def test_reads_idx_files(packed: bool, tmp_path: Path) -> None:
    images = np.arange(3 * 4 * 4).reshape(3, 4, 4)
    idx(tmp_path, images, np.array([7, 0, 9]), packed=packed)
    found = data.load(f"mnist={tmp_path}")
    torch.testing.assert_close(found.x, torch.tensor(images.reshape(3, 16) / 255).float())
    assert found.y.tolist() == [7, 0, 9]
    assert found.side == 4


def test_what_are_no_idx_files(tmp_path: Path) -> None:
    for source in ("mnist", "cifar=x", f"mnist={tmp_path}"):
        with pytest.raises(SystemExit, match="--data"):
            data.load(source)
    idx(tmp_path, np.zeros((2, 4, 4)), np.zeros(2), packed=False)
    file = tmp_path / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(SystemExit, match=r"29 values where its head tells \(2, 4, 4\)"):
        data.load(f"mnist={tmp_path}")
    file.write_bytes(b"no")
    with pytest.raises(SystemExit, match="not an idx file"):
        data.load(f"mnist={tmp_path}")


def test_results_survive_a_killed_run(tmp_path: Path) -> None:
    store = runner.Store(tmp_path / "some" / "results.jsonl")
    store.add("a", {"accuracy": 0.5})
    with store.path.open("a") as file:
        file.write('{"key": "b", "resu')  # killed while it wrote
    again = runner.Store(store.path)
    assert again.results == {"a": {"accuracy": 0.5}}
    again.add("c", {"accuracy": 0.25})
    assert runner.Store(store.path).results["c"] == {"accuracy": 0.25}


@pytest.mark.slow
def test_it_measures_writes_the_page_and_goes_on(tmp_path: Path) -> None:
    arguments = ["--quick", "--only", "dale,newborn-own-age,static100", "--workers", "2",
                 "--results", str(tmp_path), "--markdown", str(tmp_path / "page.md")]  # fmt: skip
    run = evidence(*arguments)
    assert run.returncode == 0, run.stderr
    assert "min left" in run.stderr
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "Too few seeds for intervals" in text
    assert "no evidence" in text
    for name in ("dale", "static100"):
        assert f"(images/evidence-{name}.svg)" in text
        assert (tmp_path / "images" / f"evidence-{name}.svg").read_text().startswith("<?xml")
    assert "| new synapses | 60.000 |" in text
    results = tmp_path / "digits-quick.jsonl"
    lines = results.read_text(encoding="utf-8").splitlines()
    assert len({json.loads(line)["key"] for line in lines}) == len(lines) == 26
    results.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    again = evidence(*arguments)
    assert again.returncode == 0
    assert sorted(results.read_text(encoding="utf-8").splitlines()) == sorted(lines)
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == text


def test_what_is_refused() -> None:
    run = evidence("--only", "mnist")
    assert run.returncode == 2
    assert "no experiment 'mnist'; there are permuted," in run.stderr
    for option in ("--workers", "--seeds"):
        assert evidence(option, "0").returncode == 2


def test_the_page_in_the_documentation_is_of_a_full_run() -> None:
    text = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert "no evidence.**" not in text
    assert "not measured yet" not in text
    missing = re.search(r"Planned and not measured\*\*[^:]*: (.*)\\.", text)
    for experiment in plan.experiments(quick=False, mnist=False):
        there = re.search(rf"--only {experiment.name}( --seeds \d+)?`", text)
        assert there or (missing and experiment.name in missing[1].split(", "))
    assert page.TITLES["permuted"] in text
