"""What is given in place of a model, a path or a layer type: refused with what was expected."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import biofx

NOT_A_MODEL: Any = 3
ANYTHING: Any = None


def bio() -> nn.Module:
    return biofx.transform(nn.Linear(2, 2))


def recorder() -> biofx.Recorder:
    return biofx.Recorder(biofx.GradScheduler(bio()))


def scripted() -> Any:
    return torch.jit.script(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: biofx.diff(NOT_A_MODEL), biofx.ModelError, "expected a model .* got int"),
        (lambda: biofx.info(ANYTHING), biofx.ModelError, "expected a model .* got NoneType"),
        (lambda: biofx.GradScheduler(NOT_A_MODEL), biofx.ModelError, "expected a model"),
        (lambda: biofx.export(NOT_A_MODEL, "m.pt"), biofx.ModelError, "expected a model"),
        (lambda: biofx.export(bio(), ANYTHING), biofx.ExportError, "expected the path"),
        (lambda: biofx.export(bio(), NOT_A_MODEL), biofx.ExportError, "to write, got int"),
        (
            lambda: biofx.transform(nn.Linear(2, 2), torch.ones(1, 2)),  # type: ignore[arg-type]
            biofx.ModelError,
            r"BioConfig, got Tensor; name .*: transform\(model, example_inputs=",
        ),
        (lambda: biofx.transform(nn.Linear(2, 2), "b.toml"), biofx.ModelError, "from_toml"),  # type: ignore[arg-type]
        (
            lambda: biofx.transform(nn.Linear(2, 2), {"dale_axis": "pre"}),  # type: ignore[arg-type]
            biofx.ModelError,
            r"BioConfig, got dict; give BioConfig\(\*\*settings\)",
        ),
        (
            lambda: biofx.transform(nn.Linear(2, 2), inplace="no"),  # type: ignore[arg-type]
            biofx.ModelError,
            "inplace must be True or False, got str",
        ),
        (
            lambda: biofx.export(bio(), "m.pt", torch.ones(1, 2)),  # type: ignore[arg-type]
            biofx.ExportError,
            r"got Tensor; name what .*: export\(bio, path, example_inputs=\.\.\.\)$",
        ),
        (lambda: recorder().save(NOT_A_MODEL), biofx.ReportError, "path .*, got int"),
        (lambda: recorder().save("run.html"), biofx.ReportError, "a history is JSON"),
        (lambda: biofx.transform(scripted()), biofx.ModelError, "compiled code.*Python model"),
        (
            lambda: biofx.BioConverter.set_last_module_token_for_module(NOT_A_MODEL),
            biofx.ModelError,
            "expected a torch.nn.Module to mark, got int",
        ),
        (lambda: biofx.register(), biofx.ConfigError, "needs the layer type"),
        (
            lambda: biofx.register(NOT_A_MODEL),
            biofx.ConfigError,
            r"register\(3\): expected a class",
        ),
        (lambda: biofx.register(str), biofx.ConfigError, "expected a class of modules"),  # type: ignore[arg-type]
        (lambda: biofx.register("Linear"), biofx.ConfigError, r"'Linear'.*package\.module"),
        (lambda: biofx.register(nn.Linear(2, 2)), biofx.ConfigError, "expected a class"),  # type: ignore[arg-type]
    ],
)
def test_arguments(
    call: Callable[[], Any],
    error: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        call()
    assert not list(tmp_path.iterdir())


def test_a_detached_scheduler_says_so_and_is_not_watched() -> None:
    model = bio()
    for optimizer in (torch.optim.SGD(model.parameters()), None):
        scheduler = biofx.GradScheduler(model, optimizer)
        assert not scheduler.detached
        assert "detached" not in repr(scheduler)
        scheduler.detach()
        assert scheduler.detached
        assert repr(scheduler).endswith("steps taken: 0, detached>")
        assert "steps taken: 0, detached</caption>" in scheduler._repr_html_()
        with pytest.raises(biofx.PlasticityError, match="is detached and takes no steps"):
            biofx.Recorder(scheduler)
        with pytest.raises(biofx.PlasticityError, match="was detached"):
            scheduler.step()
