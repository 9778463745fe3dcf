"""Every snippet of the seed's documentation runs with only the import changed, and really acts.

The snippets come from a copy of the documentation itself, `data/seed_documentation.txt`.
"""

import ast
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import biofx

DOCUMENTATION = Path(__file__).parent / "data" / "seed_documentation.txt"
TRAINING = "# Training loop with dynamic updates\n"
METHODS = ("fuzzy_learning_rates", "rejuvenate_weights", "add_weight_splitting_step")


def snippets() -> list[str]:
    """The documentation's code: from each first `import` to the heading of the next section."""
    text = DOCUMENTATION.read_text(encoding="utf-8")
    found = re.findall(
        r"^(import torch.*?)\n\n(?=Configuring Fuzzy Learning Rates$|Key Concepts$)",
        text,
        flags=re.MULTILINE | re.DOTALL,
    )
    return [*found[:-1], *(part + "\n" for part in found[-1].split(TRAINING))]


def with_import_changed(code: str) -> str:
    return code.replace("bio_transformations.bio_config", "biofx").replace(
        "bio_transformations", "biofx"
    )


def run(code: str, namespace: dict[str, Any]) -> Iterator[str]:
    """Run code statement by statement; yields the name that each assignment bound."""
    for statement in ast.parse(code).body:
        exec(compile(ast.Module([statement], []), str(DOCUMENTATION), "exec"), namespace)
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            yield statement.targets[0].id


def conversions(code: str) -> tuple[dict[str, Any], list[tuple[biofx.BioConfig, nn.Module]]]:
    """The namespace after the code, and every bio_model that it made on the way."""
    namespace: dict[str, Any] = {"__name__": "seed_documentation"}
    made = [
        (namespace["converter"].config, namespace["bio_model"])
        for bound in run(code, namespace)
        if bound == "bio_model"
    ]
    return namespace, made


class Recorder(torch.optim.SGD):
    """SGD that notes, before each step, by what factor every gradient was scaled.

    The unscaled gradients come from a plain twin that is given the model's weights first.
    """

    def __init__(self, model: nn.Module, plain: nn.Module, batch: tuple[torch.Tensor, ...]) -> None:
        super().__init__(model.parameters(), lr=0.05)
        self.model, self.plain, self.batch = model, copy.deepcopy(plain), batch
        self.factors: list[torch.Tensor] = []

    def step(self, closure: None = None) -> None:
        self.plain.load_state_dict(self.model.state_dict())
        inputs, targets = self.batch
        self.plain.zero_grad()
        nn.functional.mse_loss(self.plain(inputs), targets).backward()
        true = nn.utils.parameters_to_vector([p.grad for p in self.plain.parameters()])
        seen = nn.utils.parameters_to_vector([p.grad for p in self.model.parameters()])
        # a factor is only readable where the gradient is neither zero nor denormal
        self.factors.append(torch.where(true.abs() > 1e-12, seen / true, torch.nan))
        super().step(closure)


def batch(outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(32, 10, generator=generator), torch.randn(32, outputs, generator=generator)


def test_the_documentation_holds_three_snippets() -> None:
    basic, configuring, training = snippets()
    assert basic.endswith("# Use bio_model as you would a regular PyTorch model")
    assert configuring.startswith("import torch\nimport torch.nn as nn\nfrom bio_transformations")
    assert training.startswith("for epoch in range(100):")
    assert training.rstrip().endswith("optimizer.step()")
    for code in (basic, configuring, training):
        compile(code, str(DOCUMENTATION), "exec")
    assert "bio_transformations" not in with_import_changed(basic + configuring)


def test_basic_usage() -> None:
    torch.manual_seed(0)
    namespace, [(config, bio_model)] = conversions(with_import_changed(snippets()[0]))
    assert (config.dampening_factor, config.crystal_thresh) == (0.6, 4.5e-05)

    model = namespace["model"]
    inputs, targets = batch(outputs=1)
    assert torch.equal(bio_model(inputs), model(inputs))
    assert bio_model.state_dict().keys() == model.state_dict().keys()

    nn.functional.mse_loss(bio_model(inputs), targets).backward()
    before = {name: p.grad.clone() for name, p in bio_model.named_parameters()}
    bio_model.fuzzy_learning_rates()
    factors = {
        name: (p.grad / before[name])[before[name] != 0] for name, p in bio_model.named_parameters()
    }
    for name in ("fc1.weight", "fc2.weight"):
        assert factors[name].std() > 0.02, f"{name} was not scaled synapse by synapse"
        assert factors[name].min() >= 1 - 0.16 - 1e-5
        assert factors[name].max() <= 1 + 0.16 + 1e-5

    for method in METHODS:
        assert callable(getattr(bio_model, method)), method
    weights = bio_model.fc1.weight.clone()
    bio_model.rejuvenate_weights()
    assert not torch.equal(bio_model.fc1.weight, weights)


@pytest.mark.parametrize("which", range(3), ids=["lognormal", "weight_adaptive", "temporal"])
def test_configuring_fuzzy_learning_rates(which: int) -> None:
    _, configuring, training = map(with_import_changed, snippets())
    torch.manual_seed(0)
    namespace, made = conversions(configuring)
    config, bio_model = made[which]
    assert (
        config.fuzzy_lr_distribution
        == [
            biofx.Distribution.LOGNORMAL,
            biofx.Distribution.WEIGHT_ADAPTIVE,
            biofx.Distribution.TEMPORAL,
        ][which]
    )
    inputs, targets = batch(outputs=5)
    optimizer = Recorder(bio_model, namespace["model"], (inputs, targets))
    namespace.update(
        bio_model=bio_model,
        inputs=inputs,
        targets=targets,
        criterion=nn.MSELoss(),
        optimizer=optimizer,
    )
    loss_before = nn.functional.mse_loss(bio_model(inputs), targets).item()
    list(run(training, namespace))

    assert len(optimizer.factors) == 100
    assert namespace["loss"].item() < loss_before
    weights = weight_entries(bio_model)
    for factors in optimizer.factors:
        readable = factors[weights & factors.isfinite()]
        assert readable.numel() > 0.9 * weights.sum()
        assert readable.min() >= config.fuzzy_lr_min - 1e-4
        assert readable.max() <= config.fuzzy_lr_max + 1e-4
        assert readable.std() > 0.02

    first, at_49, last = (optimizer.factors[step][weights] for step in (0, 48, 99))
    moved = (last - first).abs().nan_to_num()
    assert (at_49 - first).abs().nan_to_num().max() < 1e-5, "not before update 50"
    if config.fuzzy_lr_dynamic:
        assert moved.max() > 3e-5  # two updates, each f ← 1 + 0.9995·(f − 1)
        assert moved.max() < 0.05
    else:
        assert moved.max() < 1e-5


def weight_entries(model: nn.Module) -> torch.Tensor:
    """True where `parameters_to_vector` holds a weight, False where it holds a bias."""
    return torch.cat(
        [torch.full((p.numel(),), name.endswith("weight")) for name, p in model.named_parameters()]
    )
