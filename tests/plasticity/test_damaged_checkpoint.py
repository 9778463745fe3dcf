"""Bytes from outside: whatever a checkpoint holds, it is taken as a whole or refused as a whole."""

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import biofx
from biofx.plasticity import Context, GradScheduler, Rule

from .table import batches, make, same, train

CONFIG: dict[str, Any] = {
    "crystallize_every": 1,
    "crystal_thresh": 0.05,
    "fuzzy_lr_distribution": "weight_adaptive",
    "fuzzy_lr_dynamic": True,
    "fuzzy_lr_update_freq": 2,
    "overrides": {"conv": {"fuzzy_lr_distribution": "activity"}},
    "volume_dependent_every": 2,
}
FC, CONV, STEM = "fc.weight", "conv.weight", "stem.weight"


def trained(steps: int = 3) -> tuple[Any, torch.optim.Optimizer, GradScheduler]:
    model = make(CONFIG)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = GradScheduler(model, optimizer)
    train(model, optimizer, batches(steps))
    return model, optimizer, scheduler


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], Any]:
    """Put a value where the path leads, in place of what is there."""

    def change(state: dict[str, Any]) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return change


def drop(*path: Any) -> Callable[[dict[str, Any]], Any]:
    def change(state: dict[str, Any]) -> None:
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return change


def fingerprint(change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], Any]:
    def changed(state: dict[str, Any]) -> None:
        content = json.loads(state["fingerprint"])
        state["fingerprint"] = json.dumps(change(content))

    return changed


def within(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return fingerprint(lambda content: {**content, name: value})


def crystal(value: Any) -> Callable[[dict[str, Any]], Any]:
    return put("state", "Crystallize", FC, "factors", value=value)


def drawn(value: Any) -> Callable[[dict[str, Any]], Any]:
    return put("state", "FuzzyLearningRates", FC, "drawn", value=value)


def one_wrong(value: float) -> Tensor:
    factors = torch.ones(5, 4)
    factors[2, 1] = value
    return factors


ESCAPE = "\x1b]0;owned\x07\x1b[2J"
DEEP: Any = "[" * 100_000

# name: (how the state is damaged, what the message says)
HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no steps": (drop("steps"), "it has no 'steps'"),
    "steps None": (put("steps", value=None), "it has no 'steps'"),
    "steps a number": (put("steps", value=3), "it has no 'steps'"),
    "steps a string": (put("steps", value="3"), "it has no 'steps'"),
    "steps bytes": (put("steps", value=b"3"), "it has no 'steps'"),
    "steps a mapping": (put("steps", value={0: 3}), "it has no 'steps'"),
    "steps a tensor": (put("steps", value=torch.tensor([3])), "it has no 'steps'"),
    "steps empty": (put("steps", value=[]), "0 optimizers"),
    "steps negative": (put("steps", value=[-5]), "steps holds -5"),
    "steps fractional": (put("steps", value=[2.5]), "steps holds 2.5"),
    "steps NaN": (put("steps", value=[math.nan]), "steps holds nan"),
    "steps of text": (put("steps", value=["3"]), "steps holds '3'"),
    "steps true": (put("steps", value=[True]), "steps holds True"),
    "steps of None": (put("steps", value=[None]), "steps holds None"),
    "steps of a tensor": (put("steps", value=[torch.tensor(3)]), "steps holds a tensor"),
    "steps too large": (put("steps", value=[2**63]), "steps holds 9223372036854775808"),
    "steps with escapes": (put("steps", value=[ESCAPE]), r"steps holds '\\x1b\]0;owned"),
    "version missing": (drop("version"), "version None"),
    "version of text": (put("version", value="1"), "version '1'"),
    "version true": (put("version", value=True), "version True"),
    "version a tensor": (put("version", value=torch.ones(2)), "version a tensor of shape"),
    "version with escapes": (put("version", value=ESCAPE), r"version '\\x1b\]0;owned"),
    "fingerprint None": (put("fingerprint", value=None), "it has no 'fingerprint'"),
    "fingerprint bytes": (put("fingerprint", value=b"{}"), "it has no 'fingerprint'"),
    "fingerprint empty": (put("fingerprint", value=""), "fingerprint is not readable"),
    "fingerprint cut off": (
        lambda state: state.update(fingerprint=state["fingerprint"][:-40]),
        "fingerprint is not readable",
    ),
    "fingerprint deep": (put("fingerprint", value=DEEP), "fingerprint is not readable"),
    "fingerprint a list": (put("fingerprint", value="[]"), "fingerprint is not readable"),
    "fingerprint a number": (put("fingerprint", value="3"), "fingerprint is not readable"),
    "fingerprint without anything": (put("fingerprint", value="{}"), "does not list rules"),
    "fingerprint's rules a list": (within("rules", []), "does not list rules"),
    "fingerprint's rules of text": (within("rules", {"Crystallize": "x"}), "does not list rules"),
    "fingerprint's settings a number": (
        within("rules", {"Crystallize": {FC: 3}}),
        "does not list rules",
    ),
    "fingerprint's shapes None": (within("shapes", None), "does not list rules"),
    "fingerprint's shapes of text": (
        within("shapes", {FC: ESCAPE, CONV: 3}),
        r"fc.weight has shape '\\x1b\]0;owned",
    ),
    "fingerprint's shapes with escapes": (
        within("shapes", {ESCAPE: [1]}),
        r"parameter \\x1b\]0;owned\\x07\\x1b\[2J is only in the checkpoint",
    ),
    "fingerprint's seed with escapes": (within("seed", ESCAPE), r"seed is '\\x1b\]0;owned"),
    "fingerprint's seed endless": (within("seed", "s" * 10**6), "seed is 's"),
    "fingerprint's held a number": (within("held", 3), "parameters that it holds"),
    "fingerprint's rules with escapes": (
        within("rules", {ESCAPE: {}}),
        r"rules are \['\\x1b\]0;owned",
    ),
    "state None": (put("state", value=None), "it has no 'state'"),
    "state a list": (put("state", value=[]), "it has no 'state'"),
    "state empty": (put("state", value={}), r"Fuzzy\w+'s counts of conv.weight is missing"),
    "state of an unknown rule": (put("state", ESCAPE, value={}), r"the rule '\\x1b\]0;owned"),
    "state of a number": (put("state", 3, value={}), "the rule 3"),
    "a rule's state None": (put("state", "Crystallize", value=None), "Crystallize's state is None"),
    "a rule's state a tensor": (
        put("state", "Crystallize", value=torch.ones(2)),
        "Crystallize's state is a tensor",
    ),
    "a rule's state missing": (drop("state", "Crystallize"), "Crystallize's factors .* missing"),
    "an unknown parameter": (
        put("state", "Crystallize", ESCAPE, value={}),
        r"the parameter '\\x1b\]0;owned",
    ),
    "a parameter that is a number": (put("state", "Crystallize", 1, value={}), "parameter 1"),
    "a parameter's state missing": (drop("state", "Crystallize", FC), "of fc.weight is missing"),
    "a parameter's state None": (put("state", "Crystallize", FC, value=None), "fc.weight is None"),
    "a parameter's state empty": (put("state", "Crystallize", FC, value={}), "fc.weight is miss"),
    "a field that is a number": (
        put("state", "Crystallize", FC, 3, value=1),
        "not a mapping of its fields",
    ),
    "an unknown field": (
        put("state", "Crystallize", FC, ESCAPE, value=1),
        r"has '\\x1b\]0;owned.*which the rule does not keep",
    ),
    "a stateless rule's state": (
        put("state", "VolumeDependentRates", value={FC: {"factors": torch.ones(1)}}),
        "VolumeDependentRates's state of fc.weight has 'factors'",
    ),
    "factors of text": (crystal("abc"), "Crystallize's factors of fc.weight is 'abc'"),
    "factors None": (crystal(None), "factors of fc.weight is None"),
    "factors a number": (crystal(0.5), "factors of fc.weight is 0.5"),
    "factors a list": (crystal([1.0, 2.0]), r"factors of fc.weight is \[1.0, 2.0\]"),
    "factors of another shape": (crystal(torch.ones(2, 2)), r"has shape \(2, 2\)"),
    "factors a scalar": (crystal(torch.tensor(1.0)), r"has shape \(\)"),
    "factors empty": (crystal(torch.ones(0)), r"has shape \(0,\)"),
    "factors whole numbers": (crystal(torch.ones(5, 4, dtype=torch.int64)), "holds torch.int64"),
    "factors complex": (crystal(torch.ones(5, 4, dtype=torch.cfloat)), "holds torch.complex64"),
    "factors true": (crystal(torch.ones(5, 4, dtype=torch.bool)), "holds torch.bool"),
    "factors sparse": (crystal(torch.ones(5, 4).to_sparse()), "is torch.sparse_coo"),
    "factors without data": (crystal(torch.ones(5, 4, device="meta")), "has no data"),
    "factors NaN": (crystal(one_wrong(math.nan)), "1 of 20 values, such as nan"),
    "factors infinite": (crystal(one_wrong(math.inf)), "1 of 20 values, such as inf"),
    "factors of one byte": (
        crystal(one_wrong(math.nan).to(torch.float8_e4m3fn)),
        "1 of 20 values, such as nan",
    ),
    "factors negative": (crystal(one_wrong(-0.5)), r"such as -0.5, outside \[0, 1\]"),
    "factors above 1": (crystal(one_wrong(7.0)), r"such as 7.0, outside \[0, 1\]"),
    "drawn of text": (drawn("2"), "drawn of fc.weight is '2', not of type int"),
    "drawn None": (drawn(None), "drawn of fc.weight is None"),
    "drawn negative": (drawn(-3), "drawn of fc.weight is -3.0, outside"),
    "drawn too large": (drawn(2**64), "outside"),
    "drawn fractional": (drawn(2.5), "is 2.5, not of type int"),
    "drawn a tensor": (drawn(torch.tensor(2)), "drawn of fc.weight is a tensor"),
    "counts negative": (
        put("state", "FuzzyLearningRates", CONV, "counts", value=torch.full((8,), -1.0)),
        "counts of conv.weight has 8 of 8 values",
    ),
}


# As above, of a run under AdamW whose rules replace synapses and units.
RENEWING: dict[str, Any] = {
    "rejuvenate_every": 2,
    "rejuvenate_law": "initial",
    "unit_turnover_every": 1,
    "unit_turnover_maturity": 1,
}


def renewed(*path: Any, value: Any) -> Callable[[dict[str, Any]], Any]:
    return put("state", *path, value=value)


BORN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    **{
        f"{field} {kind}": (renewed("Rejuvenate", FC, field, value=value), message)
        for field, kind, value, message in [
            ("born", "None", None, "born of fc.weight is None, not a tensor"),
            ("born", "of text", "abc", "born of fc.weight is 'abc'"),
            ("born", "fractional", torch.ones(5, 6), "holds torch.float32 where torch.int32"),
            ("born", "of another shape", torch.ones(6, 5, dtype=torch.int32), r"shape \(6, 5\)"),
            ("born", "negative", -torch.ones(5, 6, dtype=torch.int32), "30 of 30 values"),
            ("born", "too large", torch.full((5, 6), 2**40), "30 of 30 values"),
            ("newest", "None", None, "newest of fc.weight is None"),
            ("newest", "NaN", math.nan, "newest of fc.weight is nan"),
            ("newest", "negative", -1, "newest of fc.weight is -1.0, outside"),
            ("newest", "too large", 2**70, "outside"),
            ("initial_law", "unknown", "bogus", "is 'bogus', none of "),
            ("initial_law", "a number", 3, "is 3, not of type str"),
            ("initial_scale", "NaN", math.nan, "is nan, outside"),
            ("initial_scale", "negative", -1.0, "is -1.0, outside"),
            ("zzz", "unknown", 1, "which the rule does not keep"),
        ]
    },
    "no newest": (drop("state", "Rejuvenate", FC, "newest"), "newest of fc.weight is missing"),
    "no born": (drop("state", "Rejuvenate", FC, "born"), "born of fc.weight is missing"),
    "no law": (drop("state", "Rejuvenate", FC, "initial_law"), "initial_law .* is missing"),
    **{
        f"{field} {kind}": (renewed("UnitTurnover", STEM, field, value=value), message)
        for field, kind, value, message in [
            ("utility", "NaN", torch.full((6,), math.nan), "utility of stem.weight has 6 of 6"),
            ("mean", "infinite", torch.full((6,), math.inf), "mean of stem.weight has 6 of 6"),
            ("age", "negative", torch.full((6,), -1), "age of stem.weight has 6 of 6"),
            ("owed", "NaN", math.nan, "owed of stem.weight is nan, outside"),
            ("owed", "of text", "1", "owed of stem.weight is '1'"),
        ]
    },
    "no utility": (drop("state", "UnitTurnover", STEM, "utility"), "utility .* is missing"),
}


@pytest.mark.parametrize("name", BORN)
def test_what_is_kept_of_new_synapses_and_units_is_checked_too(name: str) -> None:
    damage, message = BORN[name]
    torch.manual_seed(0)
    model = make(RENEWING)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = GradScheduler(model, optimizer)
    train(model, optimizer, batches(3))
    before = copy.deepcopy(scheduler.state_dict())
    damaged = copy.deepcopy(before)
    damage(damaged)
    with pytest.raises(biofx.CheckpointError, match=message):
        scheduler.load_state_dict(damaged)
    assert str(scheduler.state_dict()) == str(before)
    scheduler.load_state_dict(before)
    assert str(scheduler.state_dict()) == str(before)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_state_is_refused_and_changes_nothing(name: str) -> None:
    damage, message = HOSTILE[name]
    model, optimizer, scheduler = trained()
    before = copy.deepcopy(scheduler.state_dict())
    # The rest of the state is that of another moment: none of it may be taken.
    state = copy.deepcopy(trained(5)[2].state_dict())
    assert state["state"]["Crystallize"][FC]["factors"].shape == (5, 4)
    damage(state)
    with pytest.raises(biofx.CheckpointError, match=message) as caught:
        scheduler.load_state_dict(state)
    text = str(caught.value)
    assert text.isprintable(), text
    assert len(text) < 1000
    after = scheduler.state_dict()
    assert after["steps"] == before["steps"]
    assert str(after["state"]) == str(before["state"])
    other, its, _ = trained()
    for net, its_optimizer in ((model, optimizer), (other, its)):
        train(net, its_optimizer, batches(6)[3:])
    assert same(model, other)


def test_the_undamaged_state_is_taken() -> None:
    whole, optimizer, scheduler = trained(5)
    state = copy.deepcopy(scheduler.state_dict())
    weights = copy.deepcopy(whole.state_dict())
    train(whole, optimizer, batches(8)[5:])
    model, optimizer, scheduler = trained(1)
    model.load_state_dict(weights)
    scheduler.load_state_dict(state)
    train(model, optimizer, batches(8)[5:])
    assert same(whole, model)


def test_a_state_that_requires_gradients_or_lies_otherwise_is_taken() -> None:
    _, _, scheduler = trained(5)
    state = copy.deepcopy(scheduler.state_dict())
    factors = state["state"]["Crystallize"][FC]["factors"]
    state["state"]["Crystallize"][FC]["factors"] = (
        factors.T.contiguous().T.double().requires_grad_(True)
    )
    scheduler.load_state_dict(state)
    taken = scheduler.state_dict()["state"]["Crystallize"][FC]["factors"]
    assert torch.equal(taken, factors)
    assert not taken.requires_grad


def test_a_damaged_state_of_a_frozen_layer_is_refused_at_once() -> None:
    state = copy.deepcopy(trained()[2].state_dict())
    crystal(one_wrong(math.nan))(state)
    model = make(CONFIG)
    model.get_parameter(FC).requires_grad_(False)
    scheduler = GradScheduler(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(biofx.CheckpointError, match="such as nan"):
        scheduler.load_state_dict(state)


class Diary(Rule):
    """Keeps what no other rule keeps, and adds to it as it goes."""

    def prepare(self, context: Context) -> None:
        context.state["mean"] = torch.full((3,), math.nan)

    def observe(self, context: Context) -> None:
        context.state.setdefault("days", []).append(context.step)


def test_a_rule_of_the_users_may_keep_what_it_likes() -> None:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = GradScheduler(model, optimizer, rules=[Diary()])
    train(model, optimizer, batches(2))
    state = copy.deepcopy(scheduler.state_dict())
    scheduler.load_state_dict(state)
    assert scheduler.state_dict()["state"]["Diary"][FC]["days"] == [1, 2]
    state["state"]["Diary"][FC]["mean"] = torch.ones(4)
    with pytest.raises(biofx.CheckpointError, match=r"mean has shape \(4,\)"):
        scheduler.load_state_dict(state)
