"""The diff: complete as data, true to the record, and a picture that fits and stays short."""

import dataclasses
import io
import json
import time
from collections import Counter

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from torch import Tensor, nn

import biofx
from biofx.diff import DiffNode, GraphDiff
from biofx.diff.glyphs import ASCII
from biofx.passes import Provenance, islands
from biofx.synapses import record_of

from .architectures import ARCHITECTURES, BY_NAME, Architecture, seed

WIDTHS = (80, 200)
GAMMA = biofx.BioConfig(weight_splitting_Gamma=2)
SOME = [entry for i, entry in enumerate(ARCHITECTURES) if i % 5 == 0]


class Basic(nn.Module):
    """A residual block of a ResNet; a bottleneck if it expands."""

    def __init__(self, inputs: int, planes: int, stride: int, expansion: int) -> None:
        super().__init__()
        outputs = planes * expansion
        sizes = [(inputs, planes, 3), (planes, outputs, 3)]
        if expansion > 1:
            sizes = [(inputs, planes, 1), (planes, planes, 3), (planes, outputs, 1)]
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        for number, (before, after, size) in enumerate(sizes):
            step = stride if number == 0 else 1
            self.convs.append(nn.Conv2d(before, after, size, step, size // 2, bias=False))
            self.norms.append(nn.BatchNorm2d(after))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = self.relu(y) if number else y
            y = norm(conv(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, counts: tuple[int, ...], expansion: int, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        inputs = width
        stages = []
        for stage, count in enumerate(counts):
            blocks = []
            for number in range(count):
                stride = 2 if stage and number == 0 else 1
                blocks.append(Basic(inputs, width * 2**stage, stride, expansion))
                inputs = width * 2**stage * expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.stem(x)))
        return self.fc(self.layer4(self.layer3(x)).mean((2, 3)))


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > 0 else x


class Everything(nn.Module):
    """Something for every marker: a frozen layer, an opaque module, a split one, an output."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.hidden = nn.Linear(4, 4)
        self.gate = Gate()
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.hidden(self.frozen(x)).relu()
        if mask is not None:
            x = x * mask
        return self.head(self.norm(self.gate(x)))


@pytest.fixture(scope="module")
def everything() -> GraphDiff:
    return biofx.diff(biofx.transform(Everything(), GAMMA, example_inputs=torch.randn(3, 4)))


def transformed(entry: Architecture, config: biofx.BioConfig) -> nn.Module:
    seed()
    model, inputs = entry.make(), entry.inputs()
    try:
        return biofx.transform(model, config, example_inputs=inputs)
    except biofx.BiofxError as error:
        pytest.skip(str(error))


def nodes_by_path(tree: DiffNode) -> dict[str, DiffNode]:
    return {node.path: node for node in tree.walk() if node.path is not None and not node.again}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", [biofx.BioConfig(), GAMMA], ids=["plain", "split"])
@pytest.mark.parametrize("entry", SOME, ids=str)
def test_it_says_what_record_and_graphs_say(entry: Architecture, config: biofx.BioConfig) -> None:
    bio = transformed(entry, config)
    record, diff = record_of(bio), biofx.diff(bio)

    # as data, through JSON
    found = json.loads(json.dumps(diff.to_dict()))
    assert found["opaque"] == dict(record.opaque)
    assert found["partly"] == dict(record.partly)
    assert set(found["layers"]) == set(record.layers)
    for name, layer in record.layers.items():
        assert found["layers"][name] == json.loads(json.dumps(dataclasses.asdict(layer)))
    for name, synapses in record.synapses.items():
        assert found["synapses"][name]["shape"] == list(synapses.shape)
        assert found["synapses"][name]["gamma"] == synapses.gamma
    actions = Counter(layer.action for layer in record.layers.values())
    assert found["counts"]["layers"] == dict(actions)
    assert found["weights_in_graphs"] == record.weights_in_graphs

    # every node of every graph stands in the tree once, as the passes marked it
    assert sum(diff.nodes.values()) == record.nodes
    assert diff.graphs == sum(1 for _ in islands(bio))
    marked = Counter(
        node.meta["biofx"].status
        for _, island in islands(bio)
        for node in island.graph.nodes
        if isinstance(node.meta.get("biofx"), Provenance)
    )
    for status in ("replaced", "inserted", "skipped"):
        assert diff.nodes.get(status, 0) >= marked[status]
    assert diff.nodes.get("inserted", 0) == marked["inserted"]

    # nothing silent
    known = nodes_by_path(diff.tree)
    for name, layer in record.layers.items():
        node = known[name]
        assert node.status == {"skipped": "skipped"}.get(layer.action, "replaced")
        assert (node.old, node.new) == (layer.old_type, layer.new_type)
        assert node.reason == layer.reason or name in record.opaque
    for name, reason in record.opaque.items():
        told = (known[name].reason, *known[name].notes)
        assert any(reason in text for text in told if text is not None)
    for module, shapes in record.shapes.items():
        for child in known[module].children:
            if child.op not in ("", "call_module") and child.status != "inserted":
                assert child.shape == shapes.get(child.name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", SOME, ids=str)
def test_every_line_fits(entry: Architecture) -> None:
    diff = biofx.diff(transformed(entry, GAMMA))
    for width in (40, *WIDTHS):
        for picture in (diff.render(width), diff.unfolded().render(width)):
            assert max(map(cell_len, picture.splitlines())) <= width
            assert "\x1b" not in picture
            assert picture.splitlines() == [line.rstrip() for line in picture.splitlines()]
        plain = diff.render(width, glyphs=ASCII)
        assert plain.isascii()
        assert max(map(len, plain.splitlines())) <= width
    for width in WIDTHS:
        rules = [line for line in diff.render(width).splitlines() if set(line) == {"─"}]
        assert [len(rule) for rule in rules] == [width, width]


@pytest.mark.parametrize("width", WIDTHS)
def test_columns_align(everything: GraphDiff, width: int) -> None:
    lines = everything.render(width).splitlines()
    titles = next(line for line in lines if "Node" in line)
    output = titles.index("Output")
    rows = [line for line in lines if "Linear → " in line]
    assert len(rows) == 4
    for row in rows:
        assert row[titles.index("Type") :].startswith("Linear → BioLinear")
        assert row[output - 1] == " "
        if "frozen" in row or "hidden" in row:  # shapes behind Python code are not known
            assert row[output:].startswith("3×4 ")
    params = titles.index("Params") + len("Params")
    assert all(row[params - 2 : params].strip().isdigit() for row in rows)


def test_what_the_picture_tells(everything: GraphDiff) -> None:
    picture = str(everything)
    lines = picture.splitlines()
    marks = {line.split()[2]: line[0] for line in lines if line[2:3] in ("├", "└")}
    assert marks["frozen"] == "!"
    assert marks["hidden"] == "~"
    assert marks["gate"] == "#"
    assert marks["norm"] == "·"
    assert marks["head"] == "~"
    assert sum(line.startswith("+") and "group_sum(weight, bias)" in line for line in lines) == 2
    for words in (
        "skipped: frozen",
        "stays Python: branches on an intermediate value",
        "not split: output layer",
        "captured  for mask=None",
        "inputs    x 3×4",
        "4 with weights: 1 augmented, 2 split, 1 skipped",
        "CHANGED by 2 layers",
        "~ replaced   + inserted   ! skipped   # stays Python   · unchanged",
    ):
        assert words in picture
    wide = everything.render(200)
    assert "uniform ν=0.16 Γ=2 grouped" in wide


def test_the_function_line() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    def function(**fields: object) -> str:
        return biofx.diff(biofx.transform(model, biofx.BioConfig().replace(**fields))).function

    assert function() == "identical"
    assert function(weight_splitting_Gamma=2) == "changed"
    assert function(weight_splitting_Gamma=2, weight_splitting_mode="expand") == "rounding"


def test_colour_shapes_and_dumb_terminals(
    everything: GraphDiff, monkeypatch: pytest.MonkeyPatch
) -> None:
    def printed(**options: object) -> str:
        stream = io.TextIOWrapper(io.BytesIO(), encoding=str(options.pop("encoding", "utf-8")))
        Console(file=stream, width=80, **options).print(everything)  # type: ignore[arg-type]
        stream.seek(0)
        return stream.read()

    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[" in printed(force_terminal=True, color_system="standard")
    assert printed().rstrip("\n").splitlines() == [
        line.ljust(len(line)) for line in everything.render(80).splitlines()
    ]
    ascii_only = printed(encoding="ascii")
    assert ascii_only.isascii()
    assert "|- hidden" in ascii_only
    assert "Linear -> BioLinear x2" in ascii_only
    monkeypatch.setenv("TERM", "dumb")
    assert printed().isascii()
    assert str(everything).isascii()


def test_print_is_as_wide_as_the_terminal(
    everything: GraphDiff, monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns, width in ((40, 80), (80, 80), (133, 133)):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert max(map(cell_len, str(everything).splitlines())) == width


def test_a_resnet_152_stays_short_and_unfolds() -> None:
    bio = biofx.transform(
        ResNet((3, 8, 36, 3), expansion=4), example_inputs=torch.randn(1, 3, 32, 32)
    )
    diff = biofx.diff(bio)
    assert diff.to_dict()["counts"]["layers"] == {"augmented": 156}
    for width in WIDTHS:
        picture = diff.render(width)
        assert len(picture.splitlines()) <= 60
        assert "35 blocks like layer1.1" in picture
        assert "156 with weights: 156 augmented" in picture
        full = diff.unfolded().render(width).splitlines()
        assert sum("Conv2d → BioConv2d" in line for line in full) == 155
        assert not any(line.startswith("⋮") for line in full[:-1])


def test_equal_siblings_are_told_once() -> None:
    model = ResNet((2, 2, 2, 2), expansion=1)
    picture = str(biofx.diff(biofx.transform(model, example_inputs=torch.randn(1, 3, 32, 32))))
    assert "1: like 0" in picture
    different = nn.Sequential(*(nn.Linear(4 + i, 5 + i) for i in range(6)))
    lines = str(biofx.diff(biofx.transform(different))).splitlines()
    assert sum("Linear → BioLinear" in line for line in lines) == 6


def test_a_long_flat_network_is_cut_in_the_middle() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            kinds = torch.randint(3, (150,)).tolist()
            self.steps = nn.ModuleList(
                (nn.Linear(4, 4), nn.Conv1d(2, 2, 1), nn.Bilinear(4, 4, 4))[kind] for kind in kinds
            )

        def forward(self, x: Tensor) -> Tensor:
            for step in self.steps:
                x = step(x, x) if isinstance(step, nn.Bilinear) else step(x)
                x = x.tanh() if isinstance(step, nn.Linear) else x
            return x

    picture = str(biofx.diff(biofx.transform(Flat(), example_inputs=torch.randn(2, 4))))
    assert len(picture.splitlines()) <= 80
    assert " more nodes: " in picture


@pytest.mark.slow
def test_ten_thousand_layers_take_seconds() -> None:
    layers = [part for _ in range(2_500) for part in (nn.Linear(2, 2), nn.ReLU())]
    bio = biofx.transform(nn.Sequential(*layers, nn.Linear(2, 2)))
    start = time.perf_counter()
    picture = biofx.diff(bio).render(80)
    assert time.perf_counter() - start < 5
    assert "2,499 × the 2 rows above" in picture


def test_tied_parameters_and_overrides_are_marked() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 4)
            self.middle = nn.Linear(4, 4)
            self.decode = nn.Linear(4, 10, bias=False)
            self.decode.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.decode(self.middle(self.embed(ids)))

    config = biofx.BioConfig(overrides={"middle": {"crystal_thresh": 0.25}})
    diff = biofx.diff(biofx.transform(Tied(), config))
    assert "tied: embed.weight also serves decode" in str(diff)
    assert "overrides: crystal_thresh=0.25" in str(diff)
    assert diff.tree.parameters == 40 + 20
    assert "other settings for middle" in str(diff)


def test_a_module_called_twice_is_unfolded_once() -> None:
    diff = biofx.diff(transformed(BY_NAME["called_twice"], biofx.BioConfig()))
    again = [node for node in diff.tree.walk() if node.again]
    assert again
    assert all(not node.children for node in again)
    assert ", again" in str(diff)


def test_a_stale_graph_is_reported() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = 2.0
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * self.scale

    bio = biofx.transform(nn.Sequential(Scaled(), nn.Linear(4, 2)))
    before = biofx.diff(bio)
    bio[0].scale = 3.0  # type: ignore[index, union-attr]
    assert "its graph was given up: attribute 'scale' changed after capture" in str(biofx.diff(bio))
    assert "given up" not in str(before)


def test_names_of_any_kind() -> None:
    model = nn.Sequential()
    model.add_module("層" * 30, nn.Linear(4, 4))
    model.add_module("[red]markup[/red]", nn.Linear(4, 4))
    model.add_module("x" * 300, nn.Linear(4, 2))
    diff = biofx.diff(biofx.transform(model, example_inputs=torch.randn(1, 4)))
    for width in (40, *WIDTHS):
        assert max(map(cell_len, diff.render(width).splitlines())) <= width
    assert "[red]markup[/red]" in str(diff)
    console = Console(file=io.StringIO(), width=80)
    console.print(diff)
    assert "[red]markup[/red]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_what_was_not_transformed_has_no_diff() -> None:
    with pytest.raises(biofx.ModelError, match=r"not made by biofx\.transform"):
        biofx.diff(nn.Linear(2, 2))


def test_wrapped_models_are_looked_through() -> None:
    bio = biofx.transform(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    assert str(biofx.diff(torch.compile(bio))) == str(biofx.diff(bio))  # type: ignore[arg-type]
    assert str(biofx.info(bio).diff) == str(biofx.diff(bio))
