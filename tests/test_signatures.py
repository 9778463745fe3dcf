"""Forwards whose signature is not what they take: decorators, generic functions."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import biofx


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(8, 8), nn.Linear(8, 3)


def with_dtype(function: Any) -> Any:
    @functools.wraps(function)
    def run(self: Net, x: Tensor) -> Any:
        return function(self, x, x.dtype)

    return run


def as_dict(function: Any) -> Any:
    @functools.wraps(function)
    def run(self: Net, *args: Any, return_dict: bool = False, **kwargs: Any) -> Any:
        result = function(self, *args, **kwargs)
        return {"out": result} if return_dict else result

    return run


class Given(Net):
    """The decorator gives an argument of the forward."""

    @with_dtype
    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return self.out(self.hidden(x.to(dtype)).relu())


class Taken(Net):
    """The decorator takes an argument of its own."""

    @as_dict
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x).relu())


class Generic(Net):
    @functools.singledispatchmethod
    def forward(self, x: Any) -> Any:
        raise TypeError

    @forward.register
    def _(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x).relu())


CASES = [(Given, {}), (Taken, {"return_dict": True}), (Taken, {}), (Generic, {})]


@pytest.mark.parametrize(("kind", "keywords"), CASES)
def test_what_the_forward_takes_counts(
    kind: type[Net], keywords: dict[str, Any], tmp_path: Path
) -> None:
    model, x = kind().eval(), torch.randn(4, 8)
    example = ((x,), keywords)
    bio = biofx.transform(model, example_inputs=example)
    assert biofx.verify(bio, model, example).graph == "equal in eval mode"
    assert biofx.info(bio).wiring.outputs == ("out",)
    for file in ("model.pt", "model.pt2"):
        assert biofx.export(bio, tmp_path / file, example_inputs=example).difference == 0.0
    bio.recompile()
    torch.testing.assert_close(bio(x, **keywords), model(x, **keywords))


def test_arguments_that_nothing_takes_are_refused() -> None:
    with pytest.raises(biofx.ModelError, match="cannot be called with example_inputs"):
        biofx.transform(Given(), example_inputs=(torch.randn(4, 8), None, 3))
