"""`BioConfig`: what it takes, and what it says of what it does not take."""

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import biofx
from biofx import BioConfig, ConfigError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"include": 3}, "include=3 must hold globs over layer names"),
        ({"include": None}, "include=None must hold globs over layer names"),
        ({"exclude": (1,)}, r"exclude=\(1,\) must hold globs"),
        ({"overrides": 3}, "overrides must map globs to fields"),
        ({"overrides": {"fc": 3}}, "must map field names to values"),
        ({"overrides": {3: {}}}, "overrides has the key 3, which is no glob"),
        ({"overrides": {"fc": {3: 4}}}, r'overrides\["fc"\]: BioConfig has no field 3'),
        ({"base_lr": "x"}, "base_lr='x' is no number"),
        ({"base_lr": float("nan")}, "base_lr=nan is no number"),
        ({"crystallize_every": 2.0}, "crystallize_every=2.0 must be a whole number"),
        ({"crystallize_every": True}, "crystallize_every=True must be a whole number"),
        ({"weight_splitting_mode": ["group"]}, "is not one of"),
        ({"fuzzy_lr_distribution": "unifrom"}, r"; did you mean 'uniform'\?$"),
        ({"crystalize_every": 3}, "no field 'crystalize_every'; did you mean 'crystallize_every'"),
        ({"fuzzy_learning_rate_nu": 0.1}, "did you mean 'fuzzy_learning_rate_factor_nu'"),
    ],
)
def test_bad_fields(fields: dict[str, Any], message: str) -> None:
    for make in (lambda: BioConfig(**fields), lambda: BioConfig().replace(**fields)):
        with pytest.raises(ConfigError, match=message):
            make()
    with pytest.raises(ConfigError, match=message):
        BioConfig.from_dict(fields)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BioConfig.from_toml(3), "expected the path of a TOML file, got int"),  # type: ignore[arg-type]
        (lambda: BioConfig.from_toml(None), "got NoneType"),  # type: ignore[arg-type]
        (lambda: BioConfig.from_dict(3), "expected field names and values, got int"),  # type: ignore[arg-type]
        (lambda: biofx.BioConverter(3), "expected a BioConfig, got int"),  # type: ignore[arg-type]
        (lambda: biofx.BioConverter({"base_lr": 0.1}), r"BioConverter\.from_dict"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_configuration(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize("value", [np.float32(0.25), np.float64(0.25), np.float16(0.25)])
def test_real_numbers_of_numpy(value: Any) -> None:
    config = BioConfig(base_lr=value, overrides={"fc": {"base_lr": value}})
    assert type(config.base_lr) is float
    assert type(config.for_layer("fc").base_lr) is float
    assert config == BioConfig(base_lr=0.25, overrides={"fc": {"base_lr": 0.25}})


def test_whole_numbers_of_numpy() -> None:
    config = BioConfig(crystallize_every=np.int64(3), fuzzy_lr_layer_index=np.int8(1))  # type: ignore[arg-type]
    assert type(config.crystallize_every) is type(config.fuzzy_lr_layer_index) is int


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.norm = nn.BatchNorm1d(4)
        self.classify = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.norm(self.encoder(x)))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"exclude": "1"}, "1 is excluded, but the weight of 1 is that of 0, which carries"),
        ({"exclude": "0"}, "0 is excluded, but the weight of 0 is that of 1, which carries"),
        (
            {"overrides": {"1": {"crystallize_every": 5}}},
            "the weight of 1 is that of 0, so the settings of 0 hold and those of 1 do not",
        ),
        ({"overrides": {"1": {"weight_splitting_Gamma": 2}}}, None),
        ({"overrides": {"*": {"crystallize_every": 5}}}, None),
        ({"exclude": "*"}, None),
    ],
)
def test_layers_that_share_a_weight(fields: dict[str, Any], said: str | None) -> None:
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8, bias=False))
    model[1].weight = model[0].weight
    if said is None:
        biofx.transform(model, BioConfig(**fields))
        return
    with pytest.warns(UserWarning, match=said) as warned:
        biofx.transform(model, BioConfig(**fields))
    assert [warning.filename for warning in warned] == [__file__]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"overrides": {"clasify": {}}}, ["overrides 'clasify' (did you mean 'classify'?)"]),
        ({"overrides": {"norm": {}}}, ["overrides 'norm'"]),
        ({"exclude": "encoder"}, ["exclude 'encoder' (did you mean 'encoder.*'?)"]),
        ({"include": ("encoder.*", "zzz")}, ["include 'zzz'"]),
        (
            {"overrides": {"*": {}, "fc9": {}}, "exclude": ("norm", "zzz*")},
            ["overrides 'fc9'", "exclude 'zzz*'"],
        ),
    ],
)
def test_globs_that_match_nothing(fields: dict[str, Any], said: list[str], inplace: bool) -> None:
    config = BioConfig(**fields)
    with pytest.warns(UserWarning, match="no weight layer of Net matches") as warned:
        bio = biofx.transform(Net(), config, inplace=inplace)
    [warning] = warned
    assert warning.filename == __file__
    assert f"matches {', '.join(said)}; what is set there has no effect" in str(warning.message)
    diff = biofx.diff(bio)
    assert diff.to_dict()["unmatched"] == said
    picture = " ".join(str(diff).split())
    assert f"unused no weight layer matches {', '.join(said)}" in picture
    assert "other settings for" not in picture or "other settings for * " in picture


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"overrides": {"class*": {}, "encoder.0": {}}},
        {"exclude": ("norm", "encoder.*")},
        {"include": "*", "exclude": "*"},
    ],
)
def test_globs_that_match(fields: dict[str, Any]) -> None:
    bio = biofx.transform(Net(), BioConfig(**fields))  # a warning is an error here
    assert biofx.diff(bio).to_dict()["unmatched"] == []


def test_it_is_an_ordinary_dataclass() -> None:
    config = BioConfig(base_lr=0.2, include="fc*")
    assert config.include == ("fc*",)
    assert config == copy.deepcopy(config) == pickle.loads(pickle.dumps(config))
    assert "base_lr" in inspect.signature(BioConfig).parameters


def test_toml(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("include = 3", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"c\.toml: include=3 must hold globs"):
        BioConfig.from_toml(tmp_path / "c.toml")


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "sigmoid", "silu", "abs", "identity"])
def test_functions_of_a_tensor_by_name(name: str) -> None:
    config = BioConfig(weight_splitting_activation_function=name)
    assert config.weight_splitting_activation_function == name


@pytest.mark.parametrize(
    "name",
    ["load", "save", "linear", "max_pool2d", "sum", "isnan", "zeros", "manual_seed", "math", "",
     "Tensor", "set_default_dtype", "_in_projection", "relu.x", "no such", "torch", "\x1b[2J"],
)  # fmt: skip
def test_what_is_no_function_of_a_tensor_is_refused(name: str) -> None:
    before = torch.random.get_rng_state()
    with pytest.raises(ConfigError, match=r"is not a function of torch\.nn") as caught:
        BioConfig(weight_splitting_activation_function=name)
    assert repr(name) in str(caught.value)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_configuration_is_read_as_a_tuple() -> None:
    """As `bio_transformations` has it: fields by position, and the methods of a named tuple."""
    config = BioConfig(torch.relu, 0.1, 0.5, weight_splitting_Gamma=2)
    assert config[:4] == (torch.relu, 0.1, 0.5, 4.5e-05)
    assert config[-1] == config.exclude
    assert len(config) == len(tuple(config)) == len(config._fields)
    function, nu, *_ = config
    assert (function, nu) == (torch.relu, 0.1)
    assert config._fields[:2] == (
        "weight_splitting_activation_function",
        "fuzzy_learning_rate_factor_nu",
    )
    assert config._asdict()["weight_splitting_Gamma"] == 2
    assert list(config._asdict()) == list(config._fields)
    assert config._replace(base_lr=0.2).base_lr == 0.2
    assert BioConfig._make(config) == config
    assert BioConfig(**config._asdict()) == config
    assert BioConfig._field_defaults["dampening_factor"] == 0.6
    with pytest.raises(ConfigError, match="no field 'base_lt'"):
        config._replace(base_lt=0.2)
    with pytest.raises(TypeError):
        BioConfig(*range(40))


def test_toml_that_is_nested_too_deeply(tmp_path: Path) -> None:
    path = tmp_path / "deep.toml"
    path.write_text("x = " + "[" * 5000 + "]" * 5000, encoding="utf-8")
    with pytest.raises(ConfigError, match="nested too deeply"):
        BioConfig.from_toml(path)


def test_a_configuration_keeps_no_dictionary_of_the_callers() -> None:
    fields = {"base_lr": 0.5}
    config = BioConfig(overrides={"fc": fields})
    fields["base_lr"] = 99
    assert config.for_layer("fc").base_lr == 0.5


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("nu", "fuzzy_learning_rate_factor_nu"),
        ("gama", "weight_splitting_Gamma"),
        ("crystal_tresh", "crystal_thresh"),
    ],
)
def test_a_field_is_suggested_by_a_word_of_it(name: str, field: str) -> None:
    settings: dict[str, Any] = {name: 0.5}
    with pytest.raises(ConfigError, match=f"no field '{name}'; did you mean '{field}'"):
        BioConfig(**settings)


def test_it_is_shown_as_it_could_be_written() -> None:
    assert repr(BioConfig()) == "BioConfig()"
    config = BioConfig(fuzzy_lr_distribution="gamma", exclude="tok", crystallize_every=2)
    shown = "BioConfig(fuzzy_lr_distribution='gamma', crystallize_every=2, exclude=['tok'])"
    assert repr(config) == shown
    assert eval(shown) == config
