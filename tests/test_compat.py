"""The API of `bio_transformations`, name by name: what code written for it may rely on."""

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import biofx
from biofx import BioConfig, BioConverter, BioModule, Distribution
from biofx.compat import DEFAULT_BIO_CONFIG


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.first = nn.Linear(16, 12)
        self.second = nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).flatten(1)
        out: Tensor = self.second(torch.relu(self.first(x)))
        return out


LAYERS = ("conv", "first", "second")


def converted(**fields: Any) -> Any:
    torch.manual_seed(0)
    model = BioConverter(**fields)(Net())
    loss = model(torch.randn(5, 2, 4, 4)).square().mean()
    loss.backward()
    return model


def layer(**options: Any) -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(6, 5, **options)
    made.weight.grad = torch.ones(5, 6)
    return made


def test_names() -> None:
    assert biofx.BioModule is BioModule
    assert biofx.DEFAULT_BIO_CONFIG is DEFAULT_BIO_CONFIG
    assert BioConfig() == DEFAULT_BIO_CONFIG
    assert BioConverter().get_config() == DEFAULT_BIO_CONFIG
    assert BioModule(layer).config == DEFAULT_BIO_CONFIG
    for name in BioModule.exposed_functions:
        assert callable(getattr(BioModule, name))
        assert callable(getattr(converted(), name))


# --- one layer -----------------------------------------------------------------------------------


def test_a_module_for_one_layer_scales_its_gradient() -> None:
    own = layer()
    plasticity = BioModule(lambda: own)
    factors = plasticity.fuzzy_learning_rate_parameters
    assert isinstance(factors, nn.Parameter)
    assert not factors.requires_grad
    assert factors.shape == own.weight.shape
    assert factors.std() > 0.02
    plasticity.fuzzy_learning_rates()
    torch.testing.assert_close(own.weight.grad, factors.data)
    assert plasticity.get_parent() is own
    assert plasticity.state_dict() == {}
    assert list(own.state_dict()) == ["weight", "bias"]
    assert type(own) is nn.Linear


def test_factors_are_read_and_written() -> None:
    own = layer()
    plasticity = BioModule(lambda: own)
    shown = plasticity.fuzzy_learning_rate_parameters
    shown.data = torch.full_like(shown, 1.5)
    plasticity.fuzzy_learning_rates()
    assert torch.equal(own.weight.grad, torch.full((5, 6), 1.5))
    with torch.no_grad():
        shown[0] *= 2
    own.weight.grad.fill_(1.0)
    plasticity.fuzzy_learning_rates()
    assert torch.equal(own.weight.grad[0], torch.full((6,), 3.0))
    assert torch.equal(own.weight.grad[1], torch.full((6,), 1.5))
    plasticity.fuzzy_learning_rate_parameters = torch.tensor(0.5)
    assert torch.equal(shown, torch.full((5, 6), 0.5))
    assert plasticity.fuzzy_learning_rate_parameters is shown
    assert plasticity.state_dict() == {}
    own.weight.grad.fill_(100.0)  # larger than mean |w|: dampened
    plasticity.crystallize()
    torch.testing.assert_close(shown.data, torch.full((5, 6), 0.3))
    for wrong in (torch.ones(3), "much", torch.tensor(-1.0), torch.tensor(float("nan"))):
        with pytest.raises(biofx.PlasticityError, match="the factors of weight must"):
            plasticity.fuzzy_learning_rate_parameters = wrong
    assert torch.allclose(shown, torch.tensor(0.3))


def test_settings_of_one_layer_may_be_changed() -> None:
    own = nn.Linear(8, 8)
    plasticity = BioModule(lambda: own)
    plasticity.config = plasticity.config._replace(fuzzy_learning_rate_factor_nu=0.5)
    assert plasticity.config.fuzzy_learning_rate_factor_nu == 0.5
    spread = plasticity.fuzzy_learning_rate_parameters.max() - 1
    assert 0.3 < float(spread) < 0.5
    with pytest.raises(biofx.ConfigError, match="expected a BioConfig"):
        plasticity.config = {}  # type: ignore[assignment]
    converted = BioConverter().convert(nn.Sequential(own))
    with pytest.raises(biofx.ConfigError, match="convert the model again"):
        converted[0].bio_mod.config = BioConfig()  # type: ignore[index]


@pytest.mark.parametrize("distribution", list(Distribution))
def test_factors_of_every_distribution_can_be_set(distribution: Distribution) -> None:
    own = layer()
    config = BioConfig(fuzzy_lr_distribution=distribution, fuzzy_lr_dynamic=True)
    plasticity = BioModule(lambda: own, config=config)
    before = plasticity.fuzzy_learning_rate_parameters.clone()
    assert torch.isfinite(before).all()
    plasticity.fuzzy_learning_rate_parameters = torch.full((5, 6), 1.25)
    plasticity.fuzzy_learning_rates()
    assert torch.equal(own.weight.grad, torch.full((5, 6), 1.25))


def test_dynamic_factors_are_followed() -> None:
    own = layer()
    config = BioConfig(
        fuzzy_lr_distribution=Distribution.TEMPORAL,
        fuzzy_lr_dynamic=True,
        fuzzy_lr_update_freq=1,
        fuzzy_lr_decay=0.5,
    )
    plasticity = BioModule(lambda: own, config)
    shown = plasticity.fuzzy_learning_rate_parameters
    before = shown.detach().clone()
    plasticity.update_fuzzy_learning_rates()
    torch.testing.assert_close(shown.data - 1, (before - 1) / 2)


def test_activity_counts_what_it_is_shown() -> None:
    own = layer()
    with torch.no_grad():
        own.weight[0], own.bias[0] = 0, 0  # a unit that is never active
    config = BioConfig(fuzzy_lr_distribution=Distribution.ACTIVITY, fuzzy_lr_dynamic=True)
    plasticity = BioModule(lambda: own, config)
    plasticity.update_fuzzy_learning_rates(torch.randn(20, 6))
    spread = plasticity.fuzzy_learning_rate_parameters.detach().sub(1).abs().amax(1)
    assert spread[0] > 0.16
    assert (spread[1:] <= 0.16 + 1e-6).all()


def test_volume_and_rejuvenation_of_one_layer() -> None:
    own = layer()
    plasticity = BioModule(lambda: own, config=BioConfig(rejuvenation_parameter_dre=2.0))
    with torch.no_grad():
        own.weight.copy_(torch.linspace(0.1, 1.0, 30).view(5, 6))
    plasticity.volume_dependent_lr()
    once = own.weight.grad.clone()
    assert (once > 0).all()
    assert once[own.weight > 0.5].mean() < once[own.weight <= 0.5].mean()
    plasticity.volume_dependent_lr()
    assert not torch.allclose(own.weight.grad, once * once)  # drawn anew
    before = own.weight.detach().clone()
    plasticity.rejuvenate_weights()
    assert not torch.equal(own.weight, before)
    before = own.weight.detach().clone()
    with pytest.warns(DeprecationWarning, match="the paper's law"):
        plasticity.rejuvenate_weights_old()
    assert not torch.equal(own.weight, before)


def test_a_weight_that_was_replaced() -> None:
    own = layer()
    plasticity = BioModule(lambda: own)
    own.weight = nn.Parameter(torch.ones(5, 6))
    own.weight.grad = torch.ones(5, 6)
    plasticity.fuzzy_learning_rates()
    assert torch.equal(own.weight.grad, plasticity.fuzzy_learning_rate_parameters.data)


def test_dales_principle_of_one_layer() -> None:
    own = layer()
    plasticity = BioModule(lambda: own, config=BioConfig(apply_dales_principle=True))
    sign = plasticity.sign
    assert (own.weight * sign >= 0).all()
    with torch.no_grad():
        own.weight.mul_(-1)
    plasticity.enforce_dales_principle()
    assert torch.equal(own.weight, torch.zeros(5, 6))
    with torch.no_grad():
        own.weight.fill_(1.0)
    BioModule.dalian_network_initialization(plasticity)
    assert torch.equal(own.weight, sign.expand(5, 6))
    without = BioModule(layer)
    assert not hasattr(without, "sign")
    for call in (
        without.enforce_dales_principle,
        lambda: BioModule.dalian_network_initialization(own),
    ):
        with pytest.raises(AttributeError):
            call()
        with pytest.raises(biofx.PlasticityError):
            call()


def test_methods_act_at_every_call_whatever_the_schedulers_interval_is() -> None:
    fields = {f"{name}_every": 5 for name in ("crystallize", "rejuvenate", "volume_dependent")}
    model = converted(**fields, rejuvenate_before_step=True, crystal_thresh=1.0)
    weight, rates = model.first.weight, model.first.bio_mod.fuzzy_learning_rate_parameters
    for method, changed in (
        ("rejuvenate_weights", weight),
        ("crystallize", rates),
        ("volume_dependent_lr", weight.grad),
    ):
        for _ in range(2):
            before = changed.detach().clone()
            getattr(model, method)()
            assert not torch.equal(changed, before), method


def test_l1_may_be_part_of_a_loss() -> None:
    own = layer()
    own.zero_grad()
    total = BioModule(lambda: own).l1_reg()
    torch.testing.assert_close(total, own.weight.abs().sum() + own.bias.abs().sum())
    total.backward()
    assert torch.equal(own.weight.grad, own.weight.sign())


# --- errors --------------------------------------------------------------------------------------

FROZEN = nn.Linear(2, 2).requires_grad_(False)


@pytest.mark.parametrize(
    ("call", "kinds"),
    [
        (lambda: BioModule("layer"), (AssertionError, biofx.ModelError)),  # type: ignore[arg-type]
        (lambda: BioModule(lambda: "layer"), (AssertionError, biofx.ModelError)),  # type: ignore[arg-type, return-value]
        (lambda: BioConfig(crystal_thresh=-1), (AssertionError, ValueError, biofx.ConfigError)),
        (lambda: BioConfig(dampening_factor=1.5), (AssertionError, biofx.ConfigError)),
        (lambda: BioConfig(weight_splitting_Gamma=-1), (AssertionError, biofx.ConfigError)),
        (
            lambda: BioConverter(weight_splitting_Gamma=4)(
                nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7))
            ),
            (ValueError, biofx.ConfigError),
        ),
        (lambda: BioModule(layer_without_grad).crystallize(), (RuntimeError,)),
        (lambda: BioModule(layer_without_grad).fuzzy_learning_rates(), (RuntimeError,)),
        (lambda: BioModule(layer_without_grad).volume_dependent_lr(), (RuntimeError,)),
        (lambda: BioModule(lambda: FROZEN).rejuvenate_weights(), (RuntimeError,)),
        (lambda: BioModule(lambda: FROZEN).crystallize(), (RuntimeError, biofx.PlasticityError)),
        (lambda: converted().enforce_dales_principle(), (AttributeError, biofx.PlasticityError)),
        (lambda: BioConverter().convert(torch.zeros(2)), (TypeError,)),
        (lambda: BioConverter().convert("Net"), (TypeError,)),
        (lambda: BioConverter()._convert_class("Net"), (TypeError,)),
        (lambda: BioConverter.set_last_module_token_for_model(3), (biofx.ModelError,)),
    ],
)
@pytest.mark.filterwarnings("ignore:.*does not divide")
def test_errors_are_also_what_they_were(call: Any, kinds: tuple[type[Exception], ...]) -> None:
    for kind in kinds:
        with pytest.raises(kind):
            call()


def layer_without_grad() -> nn.Linear:
    return nn.Linear(3, 3)


# --- converted models ----------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0, 2])
def test_each_layer_has_its_module(gamma: int) -> None:
    model = converted(weight_splitting_Gamma=gamma, fuzzy_learning_rate_factor_nu=0.2)
    plain = Net()
    assert model.state_dict().keys() == plain.state_dict().keys()
    for name in LAYERS:
        own = model.get_submodule(name)
        assert isinstance(own.bio_mod, BioModule)
        assert own.bio_mod.get_parent() is own
        assert own.bio_mod.config.fuzzy_learning_rate_factor_nu == 0.2
        assert own.bio_mod.config.weight_splitting_Gamma == gamma
        assert own.bio_mod.fuzzy_learning_rate_parameters.shape == own.weight.shape
    assert not any("bio_mod" in name for name, _ in model.named_modules())


def test_a_layers_module_acts_on_its_layer_alone() -> None:
    model = converted()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.first.bio_mod.fuzzy_learning_rates()
    changed = {
        name for name, p in model.named_parameters() if not torch.equal(p.grad, before[name])
    }
    assert changed == {"first.weight"}
    torch.testing.assert_close(
        model.first.weight.grad,
        before["first.weight"] * model.first.bio_mod.fuzzy_learning_rate_parameters,
    )


def test_the_model_and_its_layers_share_their_factors() -> None:
    model = converted()
    shown = model.second.bio_mod.fuzzy_learning_rate_parameters
    shown.data.fill_(0.25)
    before = model.second.weight.grad.clone()
    model.fuzzy_learning_rates()
    torch.testing.assert_close(model.second.weight.grad, before / 4)
    model.second.weight.grad.fill_(100.0)
    model.crystallize()
    torch.testing.assert_close(shown.data, torch.full_like(shown, 0.15))


def test_a_weight_adaptive_layer_is_drawn_at_its_own_first_use() -> None:
    model = converted(fuzzy_lr_distribution=Distribution.WEIGHT_ADAPTIVE)
    model.first.bio_mod.fuzzy_learning_rates()
    assert model.first.bio_mod.fuzzy_learning_rate_parameters.std() > 0.01
    model.second.bio_mod.fuzzy_learning_rates()
    assert model.second.bio_mod.fuzzy_learning_rate_parameters.std() > 0.01


def test_layer_adaptive_layers_know_their_rank() -> None:
    model = converted(fuzzy_lr_distribution=Distribution.LAYER_ADAPTIVE)
    found = [model.get_submodule(name).bio_mod.config for name in LAYERS]
    assert [config.fuzzy_lr_layer_index for config in found] == [0, 1, 2]
    assert {config.fuzzy_lr_total_layers for config in found} == {3}


@pytest.mark.parametrize("gamma", [0, 2])
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_drives_itself(how: str, gamma: int) -> None:
    model = converted(weight_splitting_Gamma=gamma)
    model.first.bio_mod.fuzzy_learning_rate_parameters = torch.tensor(0.5)
    again = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert again.first.bio_mod.get_parent() is again.first
    assert torch.equal(
        again.first.bio_mod.fuzzy_learning_rate_parameters, torch.full((12, 16), 0.5)
    )
    before = copy.deepcopy(model.state_dict())
    again.first.bio_mod.rejuvenate_weights()
    assert not torch.equal(again.first.weight, before["first.weight"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    alone = copy.deepcopy(model.first)
    with pytest.raises(biofx.ModelError, match="copied out of its converted model"):
        alone.bio_mod.rejuvenate_weights()


def test_converting_a_converted_model_gives_it_other_settings() -> None:
    model = converted(fuzzy_learning_rate_factor_nu=0.1)
    weights = dict(model.named_parameters())
    model.first.bio_mod.fuzzy_learning_rate_parameters = torch.tensor(0.5)
    config = BioConfig(fuzzy_learning_rate_factor_nu=0.4, dampening_factor=0.3)
    again: Any = BioConverter(config)(model)
    assert again is model
    assert dict(again.named_parameters()) == weights
    for name in LAYERS:
        assert again.get_submodule(name).bio_mod.config == config
        factors = again.get_submodule(name).bio_mod.fuzzy_learning_rate_parameters
        assert (factors - 1).abs().max() > 0.2
    assert biofx.info(again).config == config
    scheduler = biofx.GradScheduler(again, torch.optim.SGD(again.parameters(), lr=0.1))
    assert '"nu": 0.4' in scheduler.state_dict()["fingerprint"]
    torch.save(again.state_dict(), io.BytesIO())


def test_what_is_built_into_the_graph_stays_and_is_said() -> None:
    model = converted()
    before = model(torch.ones(1, 2, 4, 4))
    with pytest.warns(UserWarning, match="weight_splitting_Gamma changes what it computes"):
        BioConverter(weight_splitting_Gamma=2, base_lr=0.3)(model)
    assert torch.equal(model(torch.ones(1, 2, 4, 4)), before)
    assert model.first.bio_mod.config.base_lr == 0.3
    with pytest.raises(biofx.ConfigError, match="converted without ACTIVITY"):
        BioConverter(fuzzy_lr_distribution="activity")(model)
    assert model.first.bio_mod.config.fuzzy_lr_distribution == Distribution.UNIFORM


def test_marks() -> None:
    model = Net()
    assert BioConverter.mark_skip_weight_splitting(model.conv) is model.conv
    split: Any = BioConverter(weight_splitting_Gamma=2)(model)
    assert split.add_weight_splitting_step() == ("first",)
    other = Net()
    BioConverter.set_last_module_token_for_model(other)
    marked = [name for name, child in other.named_children() if hasattr(child, "last_module_token")]
    assert marked == ["second"]
    BioConverter.set_last_module_token_for_model(nn.Sequential(only := nn.Linear(2, 2)))
    assert not hasattr(only, "last_module_token")


def test_a_class_converted_twice() -> None:
    once = BioConverter(base_lr=0.2)(Net)
    twice = BioConverter(base_lr=0.3)(once)
    made: Any = twice()
    assert made.first.bio_mod.config.base_lr == 0.3


class Counting(BioModule):
    """A module of the user's own, with a method that the package does not have."""

    exposed_functions = (*BioModule.exposed_functions, "count")
    counted: int

    def count(self) -> None:
        self.__dict__["counted"] = self.__dict__.get("counted", 0) + 1

    def rejuvenate_weights(self) -> None:
        self.count()
        super().rejuvenate_weights()


class CountingConverter(BioConverter):
    def _bio_modulize(self, module: nn.Module) -> None:
        module.add_module("bio_mod", Counting(lambda: module, config=self.config))


def test_modules_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BioModule, "exposed_functions", Counting.exposed_functions)
    torch.manual_seed(0)
    model: Any = CountingConverter()(Net())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.count()
    model.rejuvenate_weights()
    assert [model.get_submodule(name).bio_mod.counted for name in LAYERS] == [2, 2, 2]
    assert not torch.equal(model.first.weight, before["first.weight"])
    model(torch.randn(5, 2, 4, 4)).square().mean().backward()
    grad = model.first.weight.grad.clone()
    model.fuzzy_learning_rates()
    assert not torch.equal(model.first.weight.grad, grad)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert model.state_dict().keys() == Net().state_dict().keys()


# --- what code written for the package reads and calls besides -----------------------------------


def test_activity_is_counted_where_it_was() -> None:
    conv = nn.Conv2d(3, 6, 3, padding=1)
    plasticity = BioModule(lambda: conv, ACTIVE)
    assert torch.equal(plasticity.activation_count, torch.zeros(6))
    plasticity.update_fuzzy_learning_rates(torch.randn(2, 3, 8, 8))
    once = plasticity.activation_count
    assert ((once > 0) & (once <= 2 * 8 * 8)).all()
    plasticity.update_fuzzy_learning_rates(torch.randn(2, 3, 8, 8))
    assert (plasticity.activation_count > once).all()
    assert not hasattr(BioModule(lambda: conv), "activation_count")


def test_activity_is_counted_in_a_converted_model() -> None:
    model: Any = BioConverter(ACTIVE)(Net())
    model(torch.randn(5, 2, 4, 4))
    before = {name: model.get_submodule(name).bio_mod.activation_count.sum() for name in LAYERS}
    assert all(total > 0 for total in before.values())
    model.update_fuzzy_learning_rates()
    model(torch.randn(5, 2, 4, 4))
    for name in LAYERS:
        assert model.get_submodule(name).bio_mod.activation_count.sum() > before[name]


ACTIVE = BioConfig(
    fuzzy_lr_distribution=Distribution.ACTIVITY, fuzzy_lr_dynamic=True, fuzzy_lr_update_freq=1
)


def test_activity_acts_without_calls_of_update() -> None:
    """In the package, the forward pass itself updates these factors."""
    torch.manual_seed(0)
    model: Any = BioConverter(ACTIVE)(Net())
    seen = []
    for _ in range(3):
        model(torch.randn(5, 2, 4, 4)).square().mean().backward()
        model.fuzzy_learning_rates()
        seen.append(model.first.bio_mod.fuzzy_learning_rate_parameters.detach().clone())
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    model.update_fuzzy_learning_rates()
    own = model.first.bio_mod.fuzzy_learning_rate_parameters.detach().clone()
    model.fuzzy_learning_rates()  # no second update
    assert torch.equal(model.first.bio_mod.fuzzy_learning_rate_parameters, own)
    still: Any = BioConverter(ACTIVE, fuzzy_lr_dynamic=False)(Net())
    for _ in range(2):
        still(torch.randn(5, 2, 4, 4)).square().mean().backward()
        still.fuzzy_learning_rates()
        seen.append(still.first.bio_mod.fuzzy_learning_rate_parameters.detach().clone())
    assert torch.equal(seen[-1], seen[-2])


def test_weight_adaptive_factors_can_be_asked_for_anew() -> None:
    own = layer()
    config = BioConfig(fuzzy_lr_distribution=Distribution.WEIGHT_ADAPTIVE)
    plasticity = BioModule(lambda: own, config)
    factors = plasticity.fuzzy_learning_rate_parameters
    assert plasticity.weight_adaptive_initialized is False
    plasticity.update_fuzzy_learning_rates()
    assert plasticity.weight_adaptive_initialized is True
    first = factors.detach().clone()
    plasticity.update_fuzzy_learning_rates()
    assert torch.equal(factors, first)
    plasticity.weight_adaptive_initialized = False
    assert torch.equal(factors, first)
    plasticity.update_fuzzy_learning_rates()
    assert plasticity.weight_adaptive_initialized is True
    assert not torch.equal(factors, first)
    assert not hasattr(BioModule(layer), "weight_adaptive_initialized")


class Scale(nn.Module):
    """A layer of a type that biofx does not know, without a forward."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(*shape) + 0.5)


@pytest.mark.parametrize("shape", [(4, 6), (5,), (2, 3, 4)])
def test_any_module_with_a_weight_is_a_layer(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    own = Scale(*shape)
    plasticity = BioModule(lambda: own, BioConfig(rejuvenation_parameter_dre=0.5))
    own.weight.grad = torch.ones(shape)
    plasticity.fuzzy_learning_rates()
    factors = plasticity.fuzzy_learning_rate_parameters.detach().clone()
    assert torch.equal(own.weight.grad, factors)
    assert factors.std() > 0.02
    own.weight.grad.fill_(100.0)
    plasticity.crystallize()
    torch.testing.assert_close(plasticity.fuzzy_learning_rate_parameters.data, factors * 0.6)
    plasticity.volume_dependent_lr()
    before = own.weight.detach().clone()
    plasticity.rejuvenate_weights()
    assert not torch.equal(own.weight, before)
    torch.testing.assert_close(plasticity.l1_reg(), own.weight.abs().sum())
    assert list(own.state_dict()) == ["weight"]
    assert not hasattr(plasticity, "sign")
    with pytest.raises(AttributeError, match="Can not use dalians network initialization on"):
        BioModule.dalian_network_initialization(plasticity)
    with pytest.raises(AttributeError, match="Can not use dalians network initialization on"):
        BioModule(lambda: own, BioConfig(apply_dales_principle=True))
    with pytest.raises(biofx.PlasticityError, match="register"):
        BioModule(lambda: own, ACTIVE)


def test_signs_can_be_given_to_a_layer_made_without_them() -> None:
    for own, shape in ((layer(), (1, 6)), (nn.Conv2d(3, 4, 3), (1, 3, 1, 1))):
        plasticity = BioModule(lambda own=own: own)  # type: ignore[misc]
        factors = plasticity.fuzzy_learning_rate_parameters.detach().clone()
        BioModule.dalian_network_initialization(plasticity)
        assert plasticity.sign.shape == shape
        assert (own.weight * plasticity.sign >= 0).all()
        assert torch.equal(plasticity.fuzzy_learning_rate_parameters, factors)
        with pytest.raises(AttributeError, match="without apply_dales_principle"):
            plasticity.enforce_dales_principle()
    model: Any = copy.deepcopy(converted())
    BioModule.dalian_network_initialization(model.first.bio_mod)
    assert (model.first.weight * model.first.bio_mod.sign >= 0).all()
    assert not hasattr(model.second.bio_mod, "sign")


def test_a_layer_whose_weight_is_frozen_says_so() -> None:
    own = layer()
    own.weight.requires_grad_(False)
    own.bias.grad = torch.ones(5)
    plasticity = BioModule(lambda: own)
    for call in (plasticity.crystallize, plasticity.rejuvenate_weights):
        with pytest.raises(RuntimeError, match="Weights do not require gradients"):
            call()


def test_calls_on_single_layers_count_for_those_layers_alone() -> None:
    model: Any = BioConverter(
        fuzzy_lr_distribution="temporal",
        fuzzy_lr_dynamic=True,
        fuzzy_lr_update_freq=2,
        fuzzy_lr_decay=0.5,
    )(Net())
    layers = [model.conv, model.first]
    before = [own.bio_mod.fuzzy_learning_rate_parameters.detach().clone() for own in layers]
    for _ in range(2):
        for own in layers:
            own.bio_mod.update_fuzzy_learning_rates()
    for own, factors in zip(layers, before, strict=True):
        now = own.bio_mod.fuzzy_learning_rate_parameters
        torch.testing.assert_close(now.data - 1, (factors - 1) / 2)


def test_splitting_that_splits_nothing_is_said() -> None:
    """The package splits a model's only layer; here it is an output layer."""
    with pytest.warns(UserWarning, match="splits no layer of Sequential.*output layer"):
        BioConverter(weight_splitting_Gamma=2)(nn.Sequential(nn.Linear(6, 4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BioConverter(weight_splitting_Gamma=2)(Net())


def test_a_configuration_is_a_key() -> None:
    config = BioConfig(overrides={"first": {"base_lr": 0.2}})
    again = BioConfig(overrides={"first": {"base_lr": 0.2}})
    assert {config: 1}[again] == 1
    assert len({config, BioConfig(), DEFAULT_BIO_CONFIG}) == 2
