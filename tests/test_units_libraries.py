"""Units of models of torchvision, timm and Transformers, held against what the numbers do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import biofx
from tests.library_models import Made, entries, floor
from tests.silencing import check, norms_without_statistics
from tests.test_units import followed, tied

MODELS = dict(entries())
pytestmark = pytest.mark.slow
CHECKED = 6


def double(inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return {key: double(value) for key, value in inputs.items()}
    return inputs.double() if inputs.is_floating_point() else inputs


@pytest.mark.filterwarnings("ignore")  # of the libraries' own
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_units_of_library_models(make: Callable[[], Made], request: pytest.FixtureRequest) -> None:
    torch.manual_seed(0)
    model, inputs = make()
    model, inputs = awake(model.double().eval()), double(inputs)
    given = ((), inputs) if isinstance(inputs, dict) else inputs
    bio = biofx.transform(model, example_inputs=given)
    populations = biofx.info(bio).wiring.units
    whole = [p for p in populations if p.reason is None]
    assert len(whole) >= floor(request.node.callspec.id)
    claimed = [p for p in populations if followed(p) and not tied(p)]
    alive = False
    with norms_without_statistics():
        for population in claimed[:: max(1, len(claimed) // CHECKED)]:
            alive |= check(bio, population, inputs, units=1)
    assert alive


def awake(model: nn.Module) -> nn.Module:
    """Weights that start at 0 would hide what passes through them."""
    if hasattr(getattr(model, "config", None), "use_cache"):
        model.config.use_cache = False  # else keys and values are results of the model
    with torch.no_grad():
        for parameter in model.parameters():
            if float(parameter.abs().max()) < 1e-3:
                parameter.normal_(0.0, 0.1)
    return model
