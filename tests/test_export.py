"""Export: same results, no biofx needed, nothing half-written, errors that help."""

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import biofx
from biofx import BioConfig, Distribution, ExportError
from tests.architectures import ARCHITECTURES, BY_NAME, Architecture, seed, tensors_in

RELOAD = """
import json, sys
sys.modules["biofx"] = None
import torch
torch.set_num_threads(1)
differences = {}
for path in sys.argv[1:]:
    args, kwargs, wanted = torch.load(path + ".io", weights_only=True)
    model = torch.jit.load(path)
    with torch.no_grad():
        for _ in range(3):  # the compiler optimises from the second run on
            torch.manual_seed(2)
            got = model(*args, **kwargs)
            got = [got] if isinstance(got, torch.Tensor) else list(got)
            got = [g for g in got if isinstance(g, torch.Tensor)]
    assert len(got) == len(wanted)
    differences[path] = max(float((g - w).abs().max() / w.abs().max()) for g, w in zip(got, wanted))
assert not any(name.startswith("biofx.") for name in sys.modules)
print(json.dumps(differences))
"""


class SimpleModel(nn.Module):
    """The first model of the seed's documentation."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(10, 20)
        self.fc2 = nn.Linear(20, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu(self.fc1(x))
        return self.fc2(x)


class Residual(nn.Module):
    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample: nn.Module | None = None
        if stride != 1 or width != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet18(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        widths = (64, 64, 128, 256, 512)
        for i in range(4):
            first = Residual(widths[i], widths[i + 1], 1 if i == 0 else 2)
            setattr(
                self,
                f"layer{i + 1}",
                nn.Sequential(first, Residual(widths[i + 1], widths[i + 1], 1)),
            )
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Classifier(nn.Module):
    """An LSTM over tokens, classified from its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 12, num_layers=2, batch_first=True, dropout=0.2)
        self.hidden = nn.Linear(12, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        _, (state, _) = self.lstm(self.embed(tokens))
        return self.head(torch.relu(self.hidden(state[-1])))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.embed = nn.Linear(6, 16)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.fc(x)
        return -x


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Gate(), nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.dropout(F.relu(self.fc1(x)), 0.5, self.training))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.mix = nn.Linear(8, 8)
        self.out = nn.Linear(8, 20, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.tanh(self.mix(self.embed(tokens))))


class Series(nn.Module):
    """Linear layers on (batch, time, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.mix, self.down = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.mix(F.gelu(self.up(x)))))


TOKENS = torch.randint(20, (3, 7), generator=torch.Generator().manual_seed(0))
REAL: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "SimpleModel": (SimpleModel, torch.randn(4, 10)),
    "ResNet-18": (ResNet18, torch.randn(2, 3, 64, 64)),
    "TransformerEncoder": (Encoder, torch.randn(2, 5, 6)),
    "LSTM": (Classifier, TOKENS),
    "dropout": (Dropping, torch.randn(4, 6)),
    "branch, taken": (Branching, torch.randn(4, 6)),
    "tied": (Tied, TOKENS),
    "3-D": (Series, torch.randn(2, 5, 6)),
}


def trained(make: Callable[[], nn.Module], x: Tensor, gamma: int = 2, **config: Any) -> nn.Module:
    """A transformed model after a few steps, in training mode, with statistics that moved."""
    torch.manual_seed(0)
    bio = biofx.transform(make(), BioConfig(weight_splitting_Gamma=gamma, **config))
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.01)
    scheduler = biofx.GradScheduler(bio, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        bio(x).square().mean().backward()
        optimizer.step()
    scheduler.detach()
    return bio


def reload(*paths: Path) -> dict[str, float]:
    """Largest relative differences in a process that cannot import biofx, by file name."""
    code = [sys.executable, "-I", "-W", "ignore", "-c", RELOAD, *map(str, paths)]
    run = subprocess.run(code, capture_output=True, text=True, check=False, cwd=paths[0].parent)
    assert run.returncode == 0, run.stderr
    return {Path(path).name: value for path, value in json.loads(run.stdout).items()}


def names_biofx(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return [
            entry
            for entry in archive.namelist()
            if "/data" not in entry.removesuffix(".pkl")
            and not entry.endswith(".debug_pkl")  # file names of the sources, for tracebacks
            and b"biofx" in archive.read(entry)
        ]


def test_real_models_reload_without_biofx(tmp_path: Path) -> None:
    paths = []
    for name, (make, x) in REAL.items():
        for gamma in (1, 2):
            bio = trained(make, x, gamma)
            for fold in (False, True):
                path = tmp_path / f"{name} {gamma} {'folded' if fold else 'plain'}.pt"
                done = biofx.export(bio, path, fold=fold)
                assert done.how == "scripted from its graph" or name == "branch, taken"
                assert (done.path, done.format) == (path, "torchscript")
                assert (done.fold is not None) == fold
                assert names_biofx(path) == []
                assert bio.training
                bio.eval()
                with torch.no_grad():
                    torch.save(((x,), {}, [bio(x)]), f"{path}.io")
                bio.train()
                paths.append(path)
    for name, difference in reload(*paths).items():
        if name.endswith("2 folded.pt"):
            assert difference <= 1e-5, name
        else:
            assert difference == 0, name


def test_folding_shrinks_real_models(tmp_path: Path) -> None:
    for name, smallest in (("ResNet-18", 0.7), ("3-D", 0.5), ("SimpleModel", 0.7)):
        make, _ = REAL[name]
        torch.manual_seed(0)
        bio = biofx.transform(make(), BioConfig(weight_splitting_Gamma=2))
        report = biofx.export(bio, tmp_path / "m.pt").fold
        before, after = report.parameters
        assert after <= smallest * before, (name, str(report))
        assert report.unfolded == {}


# Models that TorchScript cannot express, and a part of what the error must say.
# (`torch.jit.trace` of the original takes none of them; at `try_except` it ends the process.)
NOT_EXPORTABLE = {
    "plain_dict_of_modules": "requires grad as a constant",
    "gradient_inside_forward": "requires grad as a constant",
    "functional_call_inside": "requires grad as a constant",
    "force": "requires grad as a constant",
    "try_except": "the code catches that",
    "spiking_network": "'Spike'",
    "image_ops": "cond must be a bool",
}


def outputs(model: Any, entry: Architecture) -> list[Tensor]:
    found = []
    for i in range(2):
        seed(i)
        args, kwargs = entry.inputs()
        seed(7)
        with torch.no_grad():
            found += [t.clone() for t in tensors_in(model(*args, **kwargs))]
    return [t.to_dense() if t.is_sparse else t for t in found]


@pytest.mark.parametrize("gamma", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("entry", ARCHITECTURES, ids=str)
def test_every_architecture_is_exported_or_refused(
    entry: Architecture, gamma: int, tmp_path: Path
) -> None:
    seed()
    model = entry.make().eval()
    seed(3)
    inputs = entry.inputs()
    try:
        config = BioConfig(weight_splitting_Gamma=gamma)
        bio = biofx.transform(model, config, example_inputs=inputs).eval()
    except (biofx.ModelError, biofx.ConfigError) as error:
        pytest.skip(str(error))
    path = tmp_path / "model.pt"
    if entry.name in NOT_EXPORTABLE:
        with pytest.raises(ExportError, match=NOT_EXPORTABLE[entry.name]) as error:
            biofx.export(bio, path, example_inputs=inputs, fold=False)
        assert list(tmp_path.iterdir()) == []
        assert len(str(error.value)) < 1500
        return
    done = biofx.export(bio, path, example_inputs=inputs, fold=False)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]
    assert done.difference is not None or any("random" in note for note in done.notes)
    torch.jit.load(path)


# --- what the file keeps, and what it does not ----------------------------------------------------


def test_plasticity_does_not_travel(tmp_path: Path) -> None:
    make, x = REAL["SimpleModel"]
    bio = trained(make, x, fuzzy_lr_distribution=Distribution.ACTIVITY)
    biofx.export(bio, tmp_path / "m.pt", fold=False)
    loaded = torch.jit.load(tmp_path / "m.pt")
    assert [name for name, _ in loaded.named_buffers()] == []
    assert dict(loaded.named_parameters()).keys() == dict(bio.named_parameters()).keys()


def test_the_model_itself_stays(tmp_path: Path) -> None:
    make, x = REAL["ResNet-18"]
    bio = trained(make, x)
    before = {key: value.clone() for key, value in bio.state_dict().items()}
    classes = {name: type(module) for name, module in bio.named_modules()}
    code = bio.code
    state = torch.get_rng_state()
    biofx.export(bio, tmp_path / "m.pt", example_inputs=x)
    assert torch.equal(state, torch.get_rng_state())
    assert {name: type(module) for name, module in bio.named_modules()} == classes
    assert all(torch.equal(value, before[key]) for key, value in bio.state_dict().items())
    assert bio.training
    assert bio.code == code
    bio(x).sum().backward()


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal", "pruned"])
def test_computed_weights_are_written_as_they_are(name: str, tmp_path: Path) -> None:
    entry = BY_NAME[name]
    seed()
    bio = biofx.transform(entry.make()).eval()
    biofx.export(bio, tmp_path / "m.pt")
    loaded = torch.jit.load(tmp_path / "m.pt")
    assert not any("parametrizations" in key or "orig" in key for key in loaded.state_dict())
    for mine, other in zip(outputs(bio, entry), outputs(loaded, entry), strict=True):
        assert torch.equal(mine, other)


def test_wrapped_models(tmp_path: Path) -> None:
    bio = biofx.transform(SimpleModel()).eval()
    biofx.export(torch.compile(bio), tmp_path / "m.pt")
    x = torch.randn(3, 10)
    assert torch.equal(torch.jit.load(tmp_path / "m.pt")(x), bio(x))


class Arguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, x, mask=None, *others, scale=2.0, **more):
        x = self.fc(x) * scale
        if mask is not None:
            x = x * mask
        for other in (*others, *more.values()):
            x = x + other
        return self.out(x)


def test_arguments(tmp_path: Path) -> None:
    x, y = torch.randn(3, 6), torch.randn(3, 4)
    bio = biofx.transform(Arguments()).eval()
    assert (
        biofx.export(bio, tmp_path / "m.pt", example_inputs=(x,)).how == "scripted from its graph"
    )
    loaded = torch.jit.load(tmp_path / "m.pt")
    assert torch.equal(loaded(x), bio(x))
    for args, kwargs in (((x, y), {}), ((x,), {"scale": 3.0})):
        with pytest.raises(RuntimeError, match=r"expected at most 2|Unknown keyword"):
            loaded(*args, **kwargs)
    assert biofx.export(bio, tmp_path / "m.pt", example_inputs=(x, y)).how == "traced"
    loaded = torch.jit.load(tmp_path / "m.pt")
    assert torch.equal(loaded(x, y), bio(x, y))
    with pytest.raises(RuntimeError, match="missing value for argument 'mask'"):
        loaded(x)

    everything = ((x, y, y, -y), {"scale": 1.0, "bias": y})
    bio = biofx.transform(Arguments(), example_inputs=everything).eval()
    done = biofx.export(bio, tmp_path / "m.pt", example_inputs=everything)
    assert "traced: constants in it are scale" in done.notes
    loaded = torch.jit.load(tmp_path / "m.pt")
    assert torch.equal(loaded(x, y, y, -y, bias=y), bio(*everything[0], **everything[1]))


class Extra(nn.Module):
    """A needed argument behind one with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(6, 6)

    def forward(self, x: Any, mask: Any = None, **extra: Any) -> Any:
        h = self.q(x)
        h = h if mask is None else h * mask
        return h + extra["bias"]


class Skipped(Extra):
    def forward(self, x: Any, mask: Any = None, bias: Any = None) -> Any:
        h = self.q(x)
        h = h if mask is None else h * mask
        return h if bias is None else h + bias


class Resized(nn.Module):
    """An argument that may be a list of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Any, size: Any = None) -> Any:
        return nn.functional.interpolate(self.conv(x), size=size)


class ResizedByDefault(Resized):
    def forward(self, x: Any, size: Any = [16, 16]) -> Any:  # noqa: B006
        return nn.functional.interpolate(self.conv(x), size=size)


BIAS, IMAGE = {"bias": torch.ones(6)}, torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize("format", ["torchscript", "pt2"])
@pytest.mark.parametrize(
    ("make", "example", "others"),
    [
        (Extra, ((torch.ones(2, 6),), BIAS), [((torch.ones(2, 6),), {})]),
        (Extra, ((torch.ones(2, 6), torch.ones(6)), BIAS), [((torch.ones(2, 6),), BIAS)]),
        (Skipped, ((torch.ones(2, 6),), BIAS), [((torch.ones(2, 6),), {})]),
        (Resized, ((IMAGE, [16, 16]), {}), [((IMAGE,), {}), ((IMAGE, [16, 17]), {})]),
        (Resized, ((IMAGE, (16, 16)), {}), [((IMAGE,), {}), ((IMAGE, (17, 16)), {})]),
        (Resized, ((IMAGE, 16), {}), [((IMAGE,), {}), ((IMAGE, 17), {})]),
        (ResizedByDefault, ((IMAGE,), {}), [((IMAGE, [16, 17]), {})]),
    ],
)
def test_optional_arguments(
    format: str, make: Callable[[], nn.Module], example: Any, others: list[Any], tmp_path: Path
) -> None:
    bio = biofx.transform(make(), example_inputs=example).eval()
    args, kwargs = example
    biofx.export(bio, tmp_path / "m", format=format, example_inputs=example)
    if format == "torchscript":
        loaded: Any = torch.jit.load(tmp_path / "m")
        args = tuple(arg for arg in args if isinstance(arg, Tensor))  # the others are in the file
    else:
        loaded = torch.export.load(str(tmp_path / "m")).module()
    assert torch.equal(loaded(*args, **kwargs), bio(*example[0], **kwargs))
    for other_args, other_kwargs in others:
        if format == "torchscript" and len(args) < len(example[0]):
            continue  # what differs is no tensor, and is in the file
        with pytest.raises(
            Exception,
            match=r"flatten user inputs|keyword mismatch|Guard failed|missing value|at most",
        ):
            loaded(*other_args, **other_kwargs)


def test_pt2_is_quiet(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    biofx.export(
        biofx.transform(nn.Linear(6, 6)), tmp_path / "m.pt2", "pt2", example_inputs=torch.ones(2, 6)
    )
    assert not [record for record in caplog.records if record.levelname == "WARNING"]

    class Branches(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            h = super().forward(x)
            return h if h.sum() > 0 else -h

    bio = biofx.transform(Branches(6, 6))
    with pytest.raises(ExportError, match=r"decides by a value of the data \(test_export.py:"):
        biofx.export(bio, tmp_path / "m.pt2", "pt2", example_inputs=torch.ones(2, 6))
    assert "def forward" not in "".join(capfd.readouterr())


class Sizes(nn.Module):
    """In-place operators on numbers and on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        half = whole = x.shape[1]
        half //= 2
        x = self.fc(x)
        view = x[:, :half]
        view *= 2
        x[:, 0] = 1.0
        best = x.max(1).values
        alias = best
        best += 1
        return (x / whole).sum(1) + alias * half


def test_in_place_operators(tmp_path: Path) -> None:
    bio = biofx.transform(Sizes()).eval()
    biofx.export(bio, tmp_path / "m.pt")
    x = torch.randn(3, 6)
    with torch.no_grad():
        assert torch.equal(torch.jit.load(tmp_path / "m.pt")(x), bio(x))


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("name", ["ResNet-18", "3-D", "tied"])
def test_pt2(name: str, fold: bool, tmp_path: Path) -> None:
    make, x = REAL[name]
    bio = trained(make, x).eval()
    done = biofx.export(bio, tmp_path / "m.pt2", "pt2", example_inputs=x, fold=fold)
    loaded = torch.export.load(done.path).module()
    longer = torch.cat([x, x.flip(0), x])  # the batch may be of any size
    with torch.no_grad():
        want, got = bio(longer), loaded(longer)
    assert (got - want).abs().max() <= (1e-5 * want.abs().max() if fold else 0)


def test_pt2_errors(tmp_path: Path) -> None:
    make, x = REAL["branch, taken"]
    bio = biofx.transform(make())
    with pytest.raises(ExportError, match="needs example_inputs"):
        biofx.export(bio, tmp_path / "m.pt2", "pt2")
    with pytest.raises(ExportError, match=r"data-dependent"):
        biofx.export(bio, tmp_path / "m.pt2", "pt2", example_inputs=x)
    assert list(tmp_path.iterdir()) == []


# --- errors ---------------------------------------------------------------------------------------


class Catches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.fc(x) if x.sum() > 0 else x
        except RuntimeError:
            return x


class Calls(nn.Linear):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) + 1


class Untyped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x, mask=None):
        if x.sum() > 0 and mask is not None:
            x = x * mask
        return self.fc(x)


@dataclasses.dataclass
class Pair:
    first: Tensor
    second: Tensor


class Fields(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 8)

    def forward(self, x: Tensor) -> Pair:  # type: ignore[override]
        return Pair(super().forward(x), x)


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    return model


def looked_up() -> nn.Module:
    model = nn.Sequential(nn.Embedding(4, 8, max_norm=1.0), nn.Linear(8, 4, bias=False))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(8, 8), Catches()), "in '1' (Catches)"),
        (lambda: nn.Sequential(nn.Linear(8, 8), Untyped()), "annotate it"),
        (looked_up, "max_norm"),
        (Fields, "<function Pair.__init__"),
    ],
)
def test_errors_name_the_module(
    make: Callable[[], nn.Module], message: str, tmp_path: Path
) -> None:
    bio = biofx.transform(make())
    path = tmp_path / "m.pt"
    path.write_text("what was there before")
    for _ in range(2):  # the compiler remembers failures; the message must not change
        with pytest.raises(ExportError, match=re.escape(message)):
            biofx.export(bio, path)
    assert path.read_text() == "what was there before"
    assert list(tmp_path.iterdir()) == [path]


def test_wrong_use(tmp_path: Path) -> None:
    bio = biofx.transform(SimpleModel())
    with pytest.raises(
        ExportError, match="unknown format 'onyx'; available: torchscript, pt2, onnx"
    ):
        biofx.export(bio, tmp_path / "m", format="onyx")
    with pytest.raises(ExportError, match=r"'m' does not tell the format; end it in \.pt"):
        biofx.export(bio, tmp_path / "m")
    with pytest.raises(ExportError, match=r"'m\.onnx' means format 'onnx', not 'torchscript'"):
        biofx.export(bio, tmp_path / "m.onnx", format="torchscript")
    with pytest.raises(ExportError, match="is a directory"):
        biofx.export(bio, tmp_path)
    with pytest.raises(ExportError, match="directory that does not exist"):
        biofx.export(bio, tmp_path / "nowhere" / "m.pt")
    with pytest.raises(ExportError, match="is not a regular file"):
        biofx.export(bio, os.devnull, format="pt2")
    with pytest.raises(biofx.ModelError, match="not made by biofx"):
        biofx.export(SimpleModel(), tmp_path / "m.pt")
    with pytest.raises(ExportError, match="has no values"):
        biofx.export(biofx.transform(SimpleModel()).to("meta"), tmp_path / "m.pt")
    with pytest.raises(ExportError, match="does not run on the example inputs"):
        biofx.export(bio, tmp_path / "m.pt", example_inputs=(torch.randn(3, 10), 5))
    assert list(tmp_path.iterdir()) == []


class Yields(SimpleModel):
    """Its code runs when its result is iterated."""

    def forward(self, x: Tensor) -> Any:
        yield super().forward(x)


@pytest.mark.parametrize("ending", ["pt", "pt2"])
def test_a_file_of_nothing_is_not_written(ending: str, tmp_path: Path) -> None:
    x = torch.randn(3, 10)
    bio = biofx.transform(Yields(), example_inputs=x)
    with pytest.raises(ExportError, match="the model gives no tensors"):
        biofx.export(bio, tmp_path / f"m.{ending}", example_inputs=x)
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    link, file = tmp_path / "latest.pt", tmp_path / "run" / "m.pt"
    file.parent.mkdir()
    link.symlink_to(file)
    assert biofx.export(biofx.transform(SimpleModel()), link).path == link
    assert link.is_symlink()
    torch.jit.load(str(file))


def test_a_wrong_file_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("biofx.export.export")
    x = torch.randn(3, 10)
    other = list(module.programs(biofx.transform(SimpleModel()), None, False))
    monkeypatch.setattr(module, "programs", lambda *_: other)
    with pytest.raises(ExportError, match="differs from the model's by up to"):
        biofx.export(biofx.transform(SimpleModel()), tmp_path / "m.pt", example_inputs=x)
    assert list(tmp_path.iterdir()) == []


class AddMM(nn.Module):
    """GPT-2's layer: a Linear with a transposed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return y.view(x.size()[:-1] + (4,))  # noqa: RUF005


@pytest.mark.parametrize("gamma", [1, 2])
def test_a_product_with_a_bias_is_rounded_once(gamma: int, tmp_path: Path) -> None:
    seed()
    model = nn.Sequential(AddMM(), nn.Tanh(), nn.Linear(4, 6), nn.Tanh(), AddMM())
    bio = biofx.transform(model, BioConfig(weight_splitting_Gamma=gamma)).eval()
    x = torch.randn(2, 3, 6)
    done = biofx.export(bio, tmp_path / "model.pt", example_inputs=x, fold=False)
    assert done.difference == 0
    assert torch.equal(torch.jit.load(tmp_path / "model.pt")(x), bio(x))
