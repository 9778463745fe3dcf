"""Export: ONNX, models of Transformers, files and folders that refuse, plain models."""

import copy
import math
import os
import pickle
import resource
import signal
import types
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import biofx
from biofx import BioConfig, ExportError
from tests.architectures import tensors_in

SPLIT = BioConfig(weight_splitting_Gamma=2)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)
    )


# --- what torch.export takes of the original ----------------------------------------------------


class Prompt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p, self.b = nn.Linear(2, 4), nn.Linear(4, 4)

    def forward(self, points: Any, boxes: Any) -> Any:
        y: Any = 0
        if points is not None:
            y = y + self.p(points + 0.5)
        if boxes is not None:
            y = y + self.b(boxes + 0.5)
        return y


class CallsWithNone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.prompt, self.o = Prompt(), nn.Linear(4, 2)

    @torch.no_grad()
    def forward(self, points: Tensor) -> Tensor:
        return self.o(self.prompt(points=points, boxes=None))


class CallsMethod(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.o = Prompt(), nn.Linear(4, 2)
        self.body.dtype = types.MethodType(lambda body: body.p.weight.dtype, self.body)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.o(self.body(x.to(self.body.dtype()), None))}


class Indexes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seq = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for place in range(len(self.seq)):
            x = self.seq[place](x)
            kept.append(x)
        return torch.cat(kept, -1)


class OnInstance(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 4)
        self.forward = types.MethodType(  # type: ignore[method-assign]
            lambda self, x: nn.functional.linear(x, self.weight, self.bias) + 1, self
        )


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.p, self.o = nn.Embedding(9, 8), nn.Embedding(16, 8), nn.Linear(8, 9)

    def forward(self, tokens: Tensor) -> Tensor:
        _, time = tokens.shape
        return self.o(self.e(tokens) + self.p(torch.arange(time)))


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 3))

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        return torch.spmm(a, torch.mm(x, self.w))


FORMS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "child called with None": (CallsWithNone, torch.randn(3, 2)),
    "method of a child": (CallsMethod, torch.randn(3, 2)),
    "indexed Sequential": (Indexes, torch.randn(3, 2)),
    "forward on the instance": (OnInstance, torch.randn(3, 2)),
    "example is a slice": (Language, torch.randint(9, (2, 17))[:, :-1]),
    "sparse input": (Sparse, (torch.randn(5, 6), torch.eye(5).to_sparse())),
}


@pytest.mark.parametrize("format", ["torchscript", "pt2"])
@pytest.mark.parametrize("name", FORMS)
def test_forms(name: str, format: Any, tmp_path: Path) -> None:
    make, inputs = FORMS[name]
    torch.manual_seed(0)
    bio = biofx.transform(make(), example_inputs=inputs).eval()
    done = biofx.export(bio, tmp_path / "m", format=format, example_inputs=inputs)
    assert done.difference == 0
    if name == "example is a slice" and format == "pt2":
        longer = torch.randint(9, (3, 9))
        loaded = torch.export.load(str(tmp_path / "m")).module()
        assert torch.equal(loaded(longer), bio(longer))


class Pair(NamedTuple):
    y: Tensor
    h: Tensor


class GivesPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, scale: Tensor, shift: Any = None) -> Pair:
        h = self.a(x) * scale
        return Pair(self.b(h if shift is None else h + shift), h)


def test_pt2_of_a_model_that_gives_an_object_is_called_as_the_model_is(tmp_path: Path) -> None:
    x, model = torch.randn(3, 4), GivesPair()
    inputs = ((x, x + 1), {"shift": x + 2})
    bio = biofx.transform(model, example_inputs=inputs)
    biofx.export(bio, tmp_path / "m.pt2", example_inputs=inputs)
    loaded = torch.export.load(str(tmp_path / "m.pt2")).module()
    for given, expected in zip(
        loaded(*inputs[0], **inputs[1]), model(*inputs[0], **inputs[1]), strict=True
    ):
        assert torch.equal(given, expected)


class Fields(MutableMapping[str, Tensor]):
    """Tensors by name; a copy has copies of them, whatever `copy.deepcopy` remembers."""

    def __init__(self, **fields: Tensor) -> None:
        self.fields = fields

    def __deepcopy__(self, memo: Any) -> "Fields":
        return Fields(**{key: value.clone() for key, value in self.fields.items()})

    def __getitem__(self, key: str) -> Tensor:
        return self.fields[key]

    def __setitem__(self, key: str, value: Tensor) -> None:
        self.fields[key] = value

    def __delitem__(self, key: str) -> None:
        del self.fields[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)


class Fielded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, given: Fields) -> Fields:
        return Fields(y=self.b(self.a(given["x"]).relu() + given["h"]))


def fields() -> Fields:
    return Fields(x=torch.randn(3, 4), h=torch.randn(3, 4))


@pytest.mark.parametrize("suffix", ["pt", "pt2"])
def test_the_file_of_a_model_of_objects_that_copy_their_tensors(
    suffix: str, tmp_path: Path
) -> None:
    model = Fielded()
    bio = biofx.transform(model, example_inputs=(fields(),))
    file = str(tmp_path / f"m.{suffix}")
    biofx.export(bio, file, example_inputs=(fields(),))
    loaded = torch.jit.load(file) if suffix == "pt" else torch.export.load(file).module()
    given = fields()
    found = loaded(given["x"], given["h"])["y"]  # type: ignore[operator]
    torch.testing.assert_close(found, model(given)["y"])


def test_the_graph_of_a_model_of_objects_that_copy_their_tensors() -> None:
    model = Fielded()
    bio = biofx.transform(model, example_inputs=(fields(),))
    assert biofx.verify(bio, model, (fields(),)).graph == "equal in train mode"
    assert not bio.graph.find_nodes(op="call_function", target=torch.ops.aten.clone.default)
    bio.recompile()
    given = fields()
    assert torch.equal(bio(given)["y"], model(given)["y"])


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + torch.randn(2)


def test_a_file_draws_noise_at_each_call(tmp_path: Path) -> None:
    biofx.export(biofx.transform(Noisy()), tmp_path / "m.pt")
    loaded = torch.jit.load(str(tmp_path / "m.pt"))
    assert not torch.equal(loaded(torch.ones(3, 2)), loaded(torch.ones(3, 2)))


class KeyedBySize(nn.Module):
    """A cache by size: `torch.export` takes it for fixed sizes only."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.cache = nn.Linear(4, 2), {}  # type: ignore[var-annotated]

    def forward(self, x: Tensor) -> Tensor:
        key = tuple(x.shape)
        if key not in self.cache:
            self.cache[key] = torch.arange(4.0)
        return self.fc(x + self.cache[key])


def test_pt2_with_fixed_sizes_after_free_ones_have_failed(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    bio = biofx.transform(KeyedBySize(), example_inputs=x)
    done = biofx.export(bio, tmp_path / "m.pt2", example_inputs=x)
    assert done.notes == ("sizes that may differ from the example's: none",)
    assert done.difference == 0


@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_one_example_row_does_not_fix_the_number_of_rows(format: Any, tmp_path: Path) -> None:
    if format == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    bio = biofx.transform(net(), example_inputs=torch.randn(1, 64)).eval()
    example = torch.randn(1, 64)
    done = biofx.export(bio, tmp_path / "m", format=format, example_inputs=example)
    assert done.notes == ("sizes that may differ from the example's: input.shape[0]",)
    for rows in (1, 2, 7):
        x = torch.randn(rows, 64)
        if format == "pt2":
            assert torch.equal(torch.export.load(str(tmp_path / "m")).module()(x), bio(x))
        else:
            session = pytest.importorskip("onnxruntime").InferenceSession(tmp_path / "m")
            (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            assert torch.allclose(torch.from_numpy(got), bio(x).detach(), atol=1e-5)


class Sized(nn.Module):
    """Python goes on with the number of rows, and nothing but a trace can hold the model."""

    def __init__(self, use: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.use = nn.Linear(6, 8), nn.Linear(8, 2), use

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return self.b(self.use(self.a(x).relu()))


SIZED: dict[str, Callable[[Tensor], Tensor]] = {
    "length": lambda h: h / len(h),
    "root": lambda h: h / math.sqrt(h.shape[0]),
    "loop": lambda h: torch.stack([h[i] for i in range(h.shape[0])]).mean(0),
    "limit": lambda h: h * 10 if h.shape[0] > 5 else h,
    "odd": lambda h: h * 10 if h.shape[0] % 2 else h,
}


@pytest.mark.parametrize("name", sorted(SIZED.keys() - {"root"}))  # which scripting takes
def test_what_a_trace_makes_of_sizes_is_noted(name: str, tmp_path: Path) -> None:
    x = torch.randn(4, 6)
    bio = biofx.transform(Sized(SIZED[name]), example_inputs=x).eval()
    done = biofx.export(bio, tmp_path / "m.pt", example_inputs=x)
    assert done.how == "traced"
    place, length = (any(what in note for note in done.notes) for what in (".py:", "length along"))
    assert (place, length) == (name != "loop", name != "odd"), done.notes


@pytest.mark.parametrize("name", SIZED)
def test_onnx_refuses_sizes_for_which_it_would_be_wrong(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    x = torch.randn(4, 6)
    bio = biofx.transform(Sized(SIZED[name]), example_inputs=x).eval()
    done = biofx.export(bio, tmp_path / "m.onnx", example_inputs=x)
    assert done.notes == ("sizes that may differ from the example's: none",)
    session = runtime.InferenceSession(tmp_path / "m.onnx")
    assert session.get_inputs()[0].shape == [4, 6]
    with pytest.raises(Exception, match="Got: 9 Expected: 4"):
        session.run(None, {"x": torch.randn(9, 6).numpy()})


class Recurrent(nn.Module):
    """Its state is an attribute, or a buffer, which some formats keep up to date."""

    def __init__(self, *, buffer: bool) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(4, 6), nn.Linear(6, 2)
        self.buffer, self.before = buffer, (torch.zeros(3, 6),)
        self.register_buffer("state", torch.zeros(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.fc(x) + (self.state if self.buffer else self.before[0]))
        if self.buffer:
            self.state.copy_(h.detach())
        else:
            self.before = (h.detach(),)
        return self.out(h)


@pytest.mark.parametrize(
    ("suffix", "buffer", "kept"),
    [("pt", False, False), ("pt2", False, False), ("pt2", True, True), ("onnx", True, False)],
)
def test_that_a_file_keeps_no_state_is_noted(
    suffix: str, buffer: bool, kept: bool, tmp_path: Path
) -> None:
    if suffix == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    x = torch.randn(3, 4)
    bio = biofx.transform(Recurrent(buffer=buffer), example_inputs=x).eval()
    done = biofx.export(bio, tmp_path / f"m.{suffix}", example_inputs=x)
    assert done.difference is not None
    assert kept != any("first call" in note for note in done.notes)


def test_conditions_on_sizes_are_noted(tmp_path: Path) -> None:
    x = torch.randn(4, 6)
    bio = biofx.transform(Sized(SIZED["limit"]), example_inputs=x).eval()
    done = biofx.export(bio, tmp_path / "m.pt2", example_inputs=x)
    (note,) = done.notes
    assert note.endswith(": x.shape[0], as long as x.shape[0] <= 5")


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        assert x.shape[1] < 100
        return self.fc(x) * mask[..., None]


def test_onnx_keeps_those_sizes_free_that_nothing_depends_on(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    inputs = torch.randn(4, 5, 6), torch.rand(4, 5)
    bio = biofx.transform(Masked(), example_inputs=inputs).eval()
    biofx.export(bio, tmp_path / "m.onnx", example_inputs=inputs)
    x, mask = torch.randn(7, 5, 6), torch.rand(7, 5)
    session = runtime.InferenceSession(tmp_path / "m.onnx")
    (got,) = session.run(None, {"x": x.numpy(), "mask": mask.numpy()})
    assert torch.allclose(torch.from_numpy(got), bio(x, mask).detach(), atol=1e-5)
    assert [given.shape[1:] for given in session.get_inputs()] == [[5, 6], [5]]


class OneRow(nn.Module):
    """Takes one row only, as a state of one layer is."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[0] == 1
        return self.fc(x)


def test_one_row_that_cannot_be_two(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 4)
    done = biofx.export(
        biofx.transform(OneRow(), example_inputs=x), tmp_path / "m.pt2", example_inputs=x
    )
    assert done.notes == ("sizes that may differ from the example's: x.shape[1]",)
    longer = torch.randn(1, 9, 4)
    loaded = torch.export.load(str(tmp_path / "m.pt2")).module()
    assert loaded(longer).shape == (1, 9, 2)


def test_torchscript_of_a_model_with_layers_named_like_parts_of_a_graph(tmp_path: Path) -> None:
    model = nn.Sequential()
    for name in ("graph", "code", "meta"):
        model.add_module(name, nn.Linear(4, 4))
    x = torch.randn(3, 4)
    biofx.export(biofx.transform(model, example_inputs=x), tmp_path / "m.pt")
    assert torch.equal(torch.jit.load(tmp_path / "m.pt")(x), model(x))


class Assigns(nn.Module):
    """`x += 1` changes what `a` is too; `half //= 2` leaves `whole` alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.o = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        half = whole = x.shape[1]
        half //= 2
        x = self.fc(x)
        a = x
        x += whole
        a *= half
        return self.o(a)


def test_augmented_assignment_without_example_inputs(tmp_path: Path) -> None:
    bio = biofx.transform(Assigns()).eval()
    assert biofx.info(bio).opaque == {}
    done = biofx.export(bio, tmp_path / "m.pt")
    assert done.how == "scripted from its graph"
    x = torch.randn(3, 6)
    assert torch.equal(torch.jit.load(tmp_path / "m.pt")(x), bio(x))


# --- ONNX ---------------------------------------------------------------------------------------


def test_onnx_is_one_file_smaller_when_folded_and_equal(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    x = torch.randn(5, 64)
    bio = biofx.transform(net(), SPLIT, example_inputs=x).eval()
    sizes = []
    for fold in (False, True):
        path = tmp_path / f"{fold}.onnx"
        done = biofx.export(bio, path, example_inputs=x, fold=fold)
        assert done.format == "onnx"
        assert done.difference is not None
        assert done.difference < 1e-5
        session = runtime.InferenceSession(path)
        longer = torch.randn(9, 64)
        (got,) = session.run(None, {session.get_inputs()[0].name: longer.numpy()})
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(got), bio(longer), atol=1e-5)
        sizes.append(path.stat().st_size)
    assert sizes[1] < 0.75 * sizes[0]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["False.onnx", "True.onnx"]


def test_onnx_without_its_libraries_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    bio = biofx.transform(net())
    with pytest.raises(ExportError, match=r"pip install 'biofx\[onnx\]'"):
        biofx.export(bio, tmp_path / "m.onnx", example_inputs=torch.randn(2, 64))


# --- Transformers -------------------------------------------------------------------------------


def transformers_models() -> dict[str, Any]:
    t = pytest.importorskip("transformers")
    tokens = torch.randint(50, (2, 7))
    small = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}
    return {
        "gpt2": lambda: (
            t.GPT2LMHeadModel(
                t.GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50, n_positions=32,
                             bos_token_id=0, eos_token_id=0)
            ),
            {"input_ids": tokens},
        ),
        "bert": lambda: (
            t.BertForSequenceClassification(
                t.BertConfig(**small, intermediate_size=64, vocab_size=50)
            ),
            {"input_ids": tokens, "attention_mask": torch.ones(2, 7, dtype=torch.long)},
        ),
        "t5": lambda: (
            t.T5ForConditionalGeneration(
                t.T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=50,
                           decoder_start_token_id=0)
            ),
            {"input_ids": tokens, "decoder_input_ids": tokens[:, :5]},
        ),
        "vit": lambda: (
            t.ViTForImageClassification(
                t.ViTConfig(**small, intermediate_size=64, image_size=32, patch_size=8)
            ),
            {"pixel_values": torch.randn(2, 3, 32, 32)},
        ),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["torchscript", "pt2"])
@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "vit"])
def test_transformers(name: str, format: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = transformers_models()[name]()
    bio = biofx.transform(model.eval(), SPLIT, example_inputs=inputs)
    plain = biofx.export(bio, tmp_path / "plain", format, example_inputs=inputs, fold=False)
    assert plain.difference == 0
    done = biofx.export(bio, tmp_path / "folded", format, example_inputs=inputs)
    assert done.difference is not None
    assert done.difference < 1e-5
    assert done.fold is not None
    before, after = done.fold.parameters
    assert after < 0.9 * before, str(done.fold)
    if format == "torchscript":
        loaded: Any = torch.jit.load(tmp_path / "folded")
    else:
        loaded = torch.export.load(str(tmp_path / "folded")).module()
    with torch.no_grad():
        want, got = bio(**inputs).logits, tensors_in(loaded(**inputs))
    assert any(t.shape == want.shape and torch.allclose(t, want, atol=1e-5) for t in got)


# --- files and folders that refuse --------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_full_disk_leaves_the_old_file_and_the_process(tmp_path: Path) -> None:
    bio = biofx.transform(nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 2)))
    path = tmp_path / "m.pt"
    path.write_text("old")
    child = os.fork()
    if child == 0:
        status = 3
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            biofx.export(bio, path)
        except ExportError as error:
            status = 0 if "cannot write" in str(error) and "\n" not in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_names_and_links_that_no_file_can_have(tmp_path: Path) -> None:
    bio = biofx.transform(net())
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    bad = ["x" * 300 + ".pt", "loop.pt", "nul\0.pt", "\x1b[31m/red.pt"]
    for name in bad:
        with pytest.raises(ExportError, match="cannot write") as error:
            biofx.export(bio, str(tmp_path / name))
        assert str(error.value).isprintable()
    assert [file.name for file in tmp_path.iterdir()] == ["loop.pt"]
    long = tmp_path / ("x" * 250 + ".pt")
    biofx.export(bio, long)
    torch.jit.load(long)


def test_a_folder_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:  # the superuser may write anywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(ExportError, match=r"cannot write .*m\.pt: Permission denied"):
        biofx.export(biofx.transform(net()), tmp_path / "m.pt")


def test_after_surgery(tmp_path: Path) -> None:
    bio: Any = biofx.transform(net())
    bio[2] = nn.Linear(64, 8)
    bio[4] = nn.Linear(8, 3)
    x = torch.randn(2, 64)
    biofx.export(bio, tmp_path / "m.pt", example_inputs=x)
    assert torch.equal(torch.jit.load(tmp_path / "m.pt")(x), bio(x))


# --- plain models -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["group", "expand"])
def test_plain_is_free_of_biofx(mode: Any) -> None:
    x = torch.randn(5, 64)
    config = BioConfig(weight_splitting_Gamma=2, weight_splitting_mode=mode)
    bio = biofx.transform(net(), config, example_inputs=x)
    plain: Any = biofx.plain(bio)
    assert torch.equal(plain(x), bio(x))
    assert plain.training == bio.training
    assert plain[0].weight is bio[0].weight
    assert plain[0].in_features == 64
    assert type(plain[4]) is nn.Linear
    for module in plain.modules():
        assert not type(module).__module__.startswith("biofx")
    assert b"biofx" not in pickle.dumps(plain)
    assert torch.equal(copy.deepcopy(plain)(x), bio(x))


@pytest.mark.filterwarnings("ignore")  # PyTorch moves its quantizers to another package
def test_plain_can_be_quantized() -> None:
    x = torch.randn(5, 64)
    bio = biofx.transform(net(), example_inputs=x).eval()
    from torch.ao.quantization import quantize_dynamic

    quantized = quantize_dynamic(biofx.plain(bio), {nn.Linear}, torch.qint8)
    kinds = [type(module).__name__ for module in quantized]
    assert kinds == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert type(quantized[0]).__module__.startswith("torch.ao")
    assert (quantized(x) - bio(x)).abs().max() < 0.05


def test_a_transformed_model_can_be_scripted_as_it_is() -> None:
    x = torch.randn(5, 64)
    bio = biofx.transform(net(), SPLIT, example_inputs=x).eval()
    assert torch.equal(torch.jit.script(bio)(x), bio(x))


class HeldTwice(nn.Module):
    """A list and a closure hold a layer that is a child, too."""

    def __init__(self) -> None:
        super().__init__()
        first, self.out = nn.Linear(6, 8), nn.Linear(8, 4)
        self.first, self.stages = first, [first]
        self.run = lambda x: first(x).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.run(x) + self.stages[0](x))


@pytest.mark.parametrize("suffix", ["pt", "pt2"])
def test_layers_that_lists_and_closures_hold(suffix: str, tmp_path: Path) -> None:
    x = torch.randn(3, 6)
    bio = biofx.transform(HeldTwice(), SPLIT, example_inputs=x).eval()
    plain: Any = biofx.plain(bio)
    assert plain.stages[0] is plain.first
    assert not [kind for m in plain.modules() for kind in type(m).__mro__ if "biofx" in str(kind)]
    assert torch.equal(plain(x), bio(x))
    done = biofx.export(bio, tmp_path / f"m.{suffix}", example_inputs=x)
    assert done.difference is not None
    if suffix == "pt2":
        program = torch.export.load(str(tmp_path / "m.pt2"))
        assert not program.constants
        used = {node.name for node in program.graph.find_nodes(op="placeholder") if node.users}
        assert {"p_first_weight", "p_first_bias", "p_out_weight", "p_out_bias"} <= used


class Tries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.fc(x).view(-1, 7)
        except RuntimeError:
            return self.fc(x)


@pytest.mark.parametrize("suffix", ["pt", "pt2"])
def test_a_failure_that_the_code_catches_is_the_reason(suffix: str, tmp_path: Path) -> None:
    x = torch.randn(3, 6)
    bio = biofx.transform(Tries(), example_inputs=x).eval()
    with pytest.raises(ExportError, match="its code catches that, which no file can do"):
        biofx.export(bio, tmp_path / f"m.{suffix}", example_inputs=x)


class Branches(nn.Module):
    def __init__(self, condition: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.fc, self.condition = nn.Linear(6, 8), condition

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if self.condition(x) else -self.fc(x)  # the line that is named


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
@pytest.mark.parametrize(
    "condition", [lambda x: x.sum() > 0, lambda x: x.sum().item() > 0, lambda x: int(x.sum()) > 1]
)
def test_a_branch_on_data_is_named(suffix: str, condition: Any, tmp_path: Path) -> None:
    if suffix == "onnx":
        pytest.importorskip("onnxscript")
    bio = biofx.transform(Branches(condition))
    with pytest.raises(ExportError, match=r"value of the data \(test_export_formats.py:\d+\): .*"):
        biofx.export(bio, tmp_path / f"m.{suffix}", example_inputs=torch.randn(3, 6))
