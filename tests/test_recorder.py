"""The recorder: the same run with it and without, bounded, resumed, and true to what it saw."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import biofx
from biofx.plasticity import Crystallize, FuzzyLearningRates, GradScheduler, Rejuvenate
from biofx.plasticity.numerics.shards import spread
from biofx.plasticity.scheduler import arenas
from biofx.report import sampling
from biofx.report.history import FACTOR_BINS, History, LayerHistory
from biofx.synapses import synapses_of

Run = tuple[nn.Module, torch.optim.Optimizer, GradScheduler]


def rules() -> list[Any]:
    return [
        FuzzyLearningRates(),
        Crystallize(threshold=0.01),
        Rejuvenate(max_share=0.2, schedule=biofx.plasticity.Schedule(every=4)),
    ]


def start(*, seed: int = 0, width: int = 12, given: Any = None) -> Run:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, width), nn.ReLU()
    )
    model.append(nn.Linear(width, 3))
    bio = biofx.transform(model)
    optimizer = torch.optim.AdamW(bio.parameters(), lr=0.01)
    return bio, optimizer, GradScheduler(bio, optimizer, rules=rules() if given is None else given)


def train(run: Run, first: int, last: int) -> None:
    model, optimizer, _ = run
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(8, 1, 4, 4, generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), images.flatten(1)[:, :3].argmax(1)).backward()
        optimizer.step()


def test_small_parameters_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under SGD, those whose synapses are replaced share a step."""
    found = []
    for small in (0, arenas.SMALL):
        monkeypatch.setattr(arenas, "SMALL", small)
        torch.manual_seed(0)
        bio = biofx.transform(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
        optimizer = torch.optim.SGD(bio.parameters(), lr=0.1)
        scheduler = GradScheduler(bio, optimizer, rules=rules(), compile=False)
        recorder = biofx.Recorder(scheduler, every=1)
        for _ in range(8):
            optimizer.zero_grad()
            bio(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
        assert any(arena.bindings for arena in scheduler._engine.arenas) == bool(small)
        found.append({name: layer.replaced for name, layer in recorder.history.layers.items()})
    assert found[0] == found[1]
    assert all(found[0].values())


def saved(recorder: biofx.Recorder, folder: Path) -> dict[str, Any]:
    recorder.save(folder / "run.json")
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return content


def test_training_is_the_same_to_the_bit_with_it_and_without() -> None:
    plain, watched = start(), start()
    biofx.Recorder(watched[2], every=3)
    train(plain, 0, 13)
    train(watched, 0, 13)
    for one, other in zip(plain[0].parameters(), watched[0].parameters(), strict=True):
        assert torch.equal(one, other)


def test_it_looks_after_the_first_step_and_every_so_many(tmp_path: Path) -> None:
    run = start()
    recorder = biofx.Recorder(run[2], every=5)
    train(run, 0, 17)
    content = saved(recorder, tmp_path)
    assert content["steps"] == [1, 5, 10, 15]
    assert [layer["name"] for layer in content["layers"]] == ["0.weight", "3.weight", "5.weight"]
    for layer in content["layers"]:
        for series in layer["numbers"].values():
            assert len(series) == 4
        assert layer["before"]["step"] == 0
        assert layer["after"]["step"] == 17  # when it was saved
    assert repr(recorder) == (
        "<Recorder of Sequential: 4 samples so far, one every 5 steps; .save(path) keeps them>"
    )
    assert ", one each step; " in repr(biofx.Recorder(start()[2], every=1))


def test_between_samples_it_looks_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(given=[FuzzyLearningRates()])
    recorder = biofx.Recorder(run[2], every=10)
    train(run, 0, 2)

    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("it looked")

    for name in ("_look", "_sample", "_parameter", "_at"):
        monkeypatch.setattr(recorder, name, fail)
    monkeypatch.setattr(run[2], "metrics", fail)
    train(run, 2, 8)
    with pytest.raises(pytest.fail.Exception, match="it looked"):
        train(run, 8, 9)


def test_numbers_are_those_of_the_run(tmp_path: Path) -> None:
    run = start()
    model, _, scheduler = run
    recorder = biofx.Recorder(scheduler, every=4)
    train(run, 0, 11)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    train(run, 11, 12)
    metrics = scheduler.metrics()
    for layer in saved(recorder, tmp_path)["layers"]:
        name = layer["name"]
        weight = model.get_parameter(name).detach()
        for key in ("factor_mean", "factor_std", "factor_q05", "factor_q50", "crystallized"):
            assert layer["numbers"][key][-1] == pytest.approx(metrics[name][key], rel=1e-3)
        flat = weight.flatten()
        assert layer["numbers"]["weight_max"][-1] == pytest.approx(float(flat.max()), rel=1e-3)
        assert layer["numbers"]["weight_q25"][-1] == pytest.approx(float(flat.quantile(0.25)), 1e-3)
        shares = (torch.tensor(list(recorder.history.layers[name].factors[-1])) / 255) ** 2
        factors = scheduler.factors(name).flatten()
        expected = torch.histc(factors, FACTOR_BINS, 0, 2) / factors.numel()
        assert torch.allclose(shares, expected, atol=0.01)
        # the last step's own updates, not the sum over the interval
        moved = (weight - before[name]).abs().flatten().log10().add(8).mul(4).floor().clamp(0, 31)
        found = (torch.tensor(list(recorder.history.layers[name].updates[-1])) / 255) ** 2
        expected = torch.bincount(moved.long(), minlength=32) / moved.numel()
        assert torch.allclose(found, expected, atol=0.01)
        followed = layer["synapses"][0]
        row, column = followed["place"]
        matrix = weight.flatten(1)
        assert followed["weight"][-1] == pytest.approx(float(matrix[row, column]), rel=1e-3)
        assert followed["factor"][-1] == pytest.approx(
            float(scheduler.factors(name).flatten(1)[row, column]), rel=1e-3
        )


def test_replaced_synapses_are_counted_one_by_one(tmp_path: Path) -> None:
    run = start()
    model, _, scheduler = run
    seen: dict[str, list[tuple[int, torch.Tensor]]] = {}

    class Witness(biofx.plasticity.scheduler.observer.Observer):  # type: ignore[misc]
        key = "Witness"

        def replaced(self, name: str, fresh: torch.Tensor) -> None:
            seen.setdefault(name, []).append((scheduler.steps[0], fresh.clone()))

    recorder = biofx.Recorder(scheduler, every=6)
    scheduler.observers.add(Witness())
    train(run, 0, 24)
    deaths = births = 0
    for layer in saved(recorder, tmp_path)["layers"]:
        name = layer["name"]
        count = sum(int(fresh.sum()) for _, fresh in seen[name])
        assert layer["replaced"] == count > 0
        numel = model.get_parameter(name).numel()
        assert layer["numbers"]["replaced"][-1] == pytest.approx(count / numel, rel=1e-3)
        for synapse in layer["synapses"]:
            row, column = synapse["place"]
            steps = [step for step, fresh in seen[name] if fresh.flatten(1)[row, column]]
            if synapse["born"]:
                assert synapse["born"] in steps
                births += 1
                unknown = [step < synapse["born"] for step in recorder.history.steps]
                assert [weight is None for weight in synapse["weight"]] == unknown
            deaths += len(synapse["replaced"])
            assert synapse["replaced"] == [step for step in steps if step > synapse["born"]]
    assert deaths
    assert births


def test_silent_units_are_those_that_no_gradient_reaches() -> None:
    run = start(given=[FuzzyLearningRates()])
    model = run[0]
    with torch.no_grad():
        model.get_parameter("3.bias")[:3] = -1e6  # closed for every input
    recorder = biofx.Recorder(run[2], every=2)
    train(run, 0, 2)
    grad = model.get_parameter("3.weight").grad
    assert grad is not None
    share = float((grad == 0).all(1).float().mean())
    assert share >= 3 / 12
    assert recorder.history.layers["3.weight"].numbers["silent"][-1] == pytest.approx(share)
    assert recorder.history.layers["5.weight"].numbers["silent"][-1] == 0


@pytest.mark.parametrize("stop", [6, 9, 10])  # 9: one step before it looks
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("parts", [3, 2])  # 2: without the scheduler, whose state the optimizer has
def test_a_resumed_run_has_the_history_of_an_uninterrupted_one(
    stop: int, late: bool, parts: int, tmp_path: Path
) -> None:
    whole = start()
    expected = biofx.Recorder(whole[2], every=5)
    train(whole, 0, 20)

    first = start()
    biofx.Recorder(first[2], every=5)
    train(first, 0, stop)
    checkpoint = [one.state_dict() for one in first[:parts]]
    torch.save(checkpoint, tmp_path / "run.pt")

    again = start(seed=1)
    recorder = None if late else biofx.Recorder(again[2], every=5)
    loaded = torch.load(tmp_path / "run.pt", weights_only=True)
    for one, state in zip(again[:parts], loaded, strict=True):
        one.load_state_dict(state)
    recorder = recorder or biofx.Recorder(again[2], every=5)
    train(again, stop, 20)
    assert saved(recorder, tmp_path) == saved(expected, tmp_path)


def test_a_history_of_another_model_is_refused() -> None:
    one, other = start(), start(width=13)
    state = biofx.Recorder(one[2]).state_dict()
    recorder = biofx.Recorder(other[2])
    with pytest.raises(biofx.CheckpointError, match=r"another model: 3\.weight is \[12, 64\]"):
        recorder.load_state_dict(state)
    with pytest.raises(biofx.CheckpointError, match="not the state of a Recorder"):
        recorder.load_state_dict({"content": "{"})


def test_memory_is_bounded_and_samples_lie_evenly_in_the_logarithm() -> None:
    every = 50
    history = History({}, {}, [], limit=40)
    history.layers["w"] = layer = LayerHistory({"name": "w"})
    for step in range(every, 100_001, every):
        layer.add(len(history.steps), {"x": float(step)})
        layer.factors.append(b"")
        layer.updates.append(b"")
        history.steps.append(step)
        history.thin(every)
        assert len(history.steps) <= 40
    assert history.steps[0] == every
    assert history.steps[-1] == 100_000
    assert list(layer.numbers["x"]) == history.steps  # what stays belongs to its step
    gaps = [
        math.log((b + every) / (a + every))
        for a, b in zip(history.steps[5:], history.steps[6:], strict=False)
    ]
    assert max(gaps) < 4 * min(gaps)


@pytest.mark.parametrize("layers", [1, 12, 64, 200])
def test_histories_of_many_layers_take_less_of_each(layers: int) -> None:
    samples, synapses = sampling.kept_samples(layers), sampling.kept_synapses(layers)
    assert samples >= 24
    assert layers * samples * (sampling.PER_SAMPLE + synapses * 16) <= max(2e6, layers * 24 * 400)
    assert layers * 2 * sampling.side(layers) ** 2 * 4 / 3 <= 710_000


def test_places_miss_no_column() -> None:
    """Evenly spaced ones would: 512 × 512 synapses, 4,096 of them, all in 8 columns."""
    flat = spread(512 * 512, 4096)
    assert len(flat.unique()) == 4096
    assert len((flat % 512).unique()) > 500
    assert len((flat // 512).unique()) == 512


def test_places_in_the_matrix_are_those_of_the_weight() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 5, 2), nn.Conv2d(5, 4, 2), nn.Embedding(7, 3))
    for synapses in synapses_of(biofx.transform(model)).values():
        weight = torch.arange(math.prod(synapses.shape)).view(synapses.shape)
        matrix = sampling.as_matrix(weight, synapses)
        assert matrix.shape[0] == synapses.shape[synapses.post_axis]
        for index in range(0, weight.numel(), 5):
            assert int(matrix[sampling.place_in_matrix(index, synapses)]) == index


@pytest.mark.parametrize("every", [0, -1, 2.5, True, "10"])
def test_a_bad_interval_is_refused(every: Any) -> None:
    with pytest.raises(biofx.PlasticityError, match=r"every=.* must be a whole number"):
        biofx.Recorder(start()[2], every=every)


def test_one_recorder_at_a_time() -> None:
    run = start()
    recorder = biofx.Recorder(run[2])
    with pytest.raises(biofx.PlasticityError, match=r"a Recorder watches .* already; detach\(\)"):
        biofx.Recorder(run[2])
    recorder.detach()
    biofx.Recorder(run[2], every=1)
    train(run, 0, 2)
    assert recorder.history.steps == []


def test_it_serves_several_optimizers_and_none() -> None:
    torch.manual_seed(0)
    model = biofx.transform(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    both = [torch.optim.SGD(part.parameters(), lr=0.1) for part in model.children()]
    recorder = biofx.Recorder(GradScheduler(model, both), every=2)
    for _ in range(4):
        model(torch.randn(3, 4)).sum().backward()
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad()
    assert recorder.history.steps == [1, 2, 4]

    model = biofx.transform(nn.Linear(4, 2))
    scheduler = GradScheduler(model)
    recorder = biofx.Recorder(scheduler, every=2)
    for _ in range(4):
        model(torch.randn(3, 4)).sum().backward()
        scheduler.step()
    assert recorder.history.steps == [1, 2, 4]


def test_weights_that_are_not_finite_do_no_harm(tmp_path: Path) -> None:
    run = start(given=[FuzzyLearningRates()])
    recorder = biofx.Recorder(run[2], every=1)
    with torch.no_grad():
        run[0].get_parameter("5.weight")[0] = float("nan")
        run[0].get_parameter("0.weight").fill_(float("inf"))
    train(run, 0, 2)
    text = json.dumps(saved(recorder, tmp_path))
    assert "NaN" not in text
    assert "Infinity" not in text


def test_a_frozen_layer_has_a_history_too() -> None:
    run = start()
    run[0].get_parameter("0.weight").requires_grad_(False)
    recorder = biofx.Recorder(run[2], every=1)
    train(run, 0, 2)
    numbers = recorder.history.layers["0.weight"].numbers
    assert "silent" not in numbers
    assert numbers["weight_q50"][0] == numbers["weight_q50"][1]


def test_a_sharded_run_is_refused() -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = biofx.transform(nn.Linear(4, 2))
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        scheduler = GradScheduler(model, torch.optim.SGD(model.parameters(), lr=0.1))
        with pytest.raises(biofx.PlasticityError, match=r"Recorder: weight is sharded, .*; record"):
            biofx.Recorder(scheduler)
        assert scheduler.state_dict().keys() & {"observers"} == set()
    finally:
        dist.destroy_process_group()


def test_a_histogram_of_nearly_equal_weights_has_their_range() -> None:
    weight = torch.zeros(40, 20)
    weight[0, :6] = 1.0
    (synapses,) = synapses_of(biofx.transform(nn.Linear(20, 40))).values()
    found = sampling.snapshot(weight, synapses, sample=weight.flatten(), step=1, most=8)
    assert (found.low, found.high) == (0.0, 1.0)
