"""The diff: complete as data, true to the record, and a picture that fits and stays short."""

import dataclasses
import io
import json
import shutil
import subprocess
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from torch import Tensor, nn

import biofx
from biofx.diff import DiffNode, GraphDiff
from biofx.diff.text import ASCII, clean, listed
from biofx.diff.words import plasticity
from biofx.passes import Provenance
from biofx.synapses import record_of

from . import browser
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
        return self.inner(x) if x.sum() > -1e9 else x


class Everything(nn.Module):
    """Something for every marker: a frozen layer, one split, an output, a branch, one unused."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.hidden = nn.Linear(4, 4)
        self.gate = Gate()
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.hidden(self.frozen(x)).relu()
        if mask is not None:
            x = x * mask
        return self.head(self.norm(self.gate(x)))


@pytest.fixture(scope="module")
def everything() -> GraphDiff:
    return biofx.diff(biofx.transform(Everything(), GAMMA, example_inputs=torch.randn(3, 4)))


def transformed(entry: Architecture, config: biofx.BioConfig, given: bool = True) -> nn.Module:
    seed()
    model, inputs = entry.make(), entry.inputs()
    try:
        return biofx.transform(model, config, example_inputs=inputs if given else None)
    except biofx.BiofxError as error:
        pytest.skip(str(error))


def nodes_by_path(tree: DiffNode) -> dict[str, DiffNode]:
    return {node.path: node for node in tree.walk() if node.path is not None and not node.again}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("given", [True, False], ids=["inputs", "none"])
@pytest.mark.parametrize("config", [biofx.BioConfig(), GAMMA], ids=["plain", "split"])
@pytest.mark.parametrize("entry", SOME, ids=str)
def test_it_says_what_record_and_graph_say(
    entry: Architecture, config: biofx.BioConfig, given: bool
) -> None:
    bio = transformed(entry, config, given)
    record, diff, graph = record_of(bio), biofx.diff(bio), biofx.info(bio).graph

    # as data, through JSON
    found = json.loads(json.dumps(diff.to_dict()))
    assert found["opaque"] == dict(record.opaque)
    assert found["whole"] is given
    assert [item["what"] for item in found["assumptions"]] == [a.what for a in record.assumptions]
    assert found["wiring"]["order"] == list(record.wiring.order)
    assert set(found["layers"]) == set(record.layers)
    for name, layer in record.layers.items():
        assert found["layers"][name] == json.loads(json.dumps(dataclasses.asdict(layer)))
    for name, synapses in record.synapses.items():
        assert found["synapses"][name]["shape"] == list(synapses.shape)
        assert found["synapses"][name]["gamma"] == synapses.gamma
    actions = Counter(layer.action for layer in record.layers.values())
    assert found["counts"]["layers"] == dict(actions)
    counts = [node.count for node in diff.tree.walk() if not node.again]
    assert sum(counts) == found["synapse_count"] == diff.synapses

    # every node of the graph stands in the tree once, in its order, with what it takes
    told = [node for node in diff.tree.walk() if node.op]
    real = [node for node in graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    if "" in record.opaque:
        assert told == []
    else:
        assert [node.node for node in told] == [node.name for node in real]
        for mine, theirs in zip(told, real, strict=True):
            assert mine.inputs == tuple(source.name for source in theirs.all_input_nodes)
            shape = getattr(theirs.meta.get("tensor_meta"), "shape", None)
            assert shape is None or mine.shape == tuple(shape)
    marked = Counter(
        node.meta["biofx"].status
        for node in graph.nodes
        if isinstance(node.meta.get("biofx"), Provenance)
    )
    assert diff.nodes.get("inserted", 0) == marked["inserted"]

    # nothing silent
    known = nodes_by_path(diff.tree)
    for name, layer in record.layers.items():
        node = known[name]
        assert node.status == {"augmented": "replaced"}.get(layer.action, layer.action)
        assert (node.old, node.new) == (layer.old_type, layer.new_type)
        assert node.reason == layer.reason
    for name, reason in record.opaque.items():
        if name not in record.layers:
            assert (known[name].status, known[name].reason) == ("opaque", reason)


def test_nodes_stand_in_their_modules(everything: GraphDiff) -> None:
    found = {node.node: node for node in everything.tree.walk() if node.op}
    known = nodes_by_path(everything.tree)
    assert [node.name for node in known["gate"].children] == ["sum", "gt", "inner"]
    inside = [node.name for node in known["gate.inner"].children]
    assert inside == ["group_sum(weight)", "group_sum(bias)", "linear", "group_repeat"]
    assert known["gate.inner"].shape == (3, 4)
    assert found["gt"].inputs == (found["sum_1"].node,)
    line = Gate.forward.__code__.co_firstlineno + 1
    assert found["sum_1"].place == f"test_diff.py:{line}"


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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", SOME, ids=str)
def test_synapses_and_reasons_survive_80_columns(entry: Architecture) -> None:
    bio = transformed(entry, GAMMA)
    picture = biofx.diff(bio).render(80)
    assert "Synapses" in picture
    together = " ".join(picture.split())
    reasons = {layer.reason for layer in record_of(bio).layers.values() if layer.reason}
    for reason in reasons if len(reasons) <= 12 else ():
        if not any(map(str.isdigit, reason)):
            assert reason.removeprefix("not split: ") in together


@pytest.mark.parametrize("width", WIDTHS)
def test_columns_align(everything: GraphDiff, width: int) -> None:
    lines = everything.render(width).splitlines()
    titles = next(line for line in lines if line.startswith("  Layer"))
    rows = [line for line in lines if " Linear " in line]
    assert len(rows) == 5
    for row in rows:
        assert row[titles.index("Type") :].startswith("Linear ")
        assert row[titles.index("Weight") :].startswith(("4×4", "2×4"))
        if "unused" not in row:
            assert row[titles.index("Output") :] in ("3×4", "3×2")


def test_what_the_picture_tells(everything: GraphDiff) -> None:
    picture = str(everything)
    lines = picture.splitlines()
    names = ("frozen", "hidden", "inner", "norm", "head", "unused")
    rows = {name: line for name in names for line in lines if f"{name}  " in line}
    marks = {name: row[0] for name, row in rows.items()}
    assert marks == {
        "frozen": "!", "hidden": "+", "inner": "+", "norm": "·", "head": "~", "unused": "~",
    }  # fmt: skip
    for words in (
        "plasticity  uniform ν=0.16 · Γ=2 in groups",
        "synapses    72 of 98 parameters, in 5 layers (2 split, 1 skipped)",
        "function    changed as asked for: 2 layers split in groups of units",
        "wiring      known, from one run in training mode",
        "inputs      x 3×4",
        "16 · frozen [1]",
        "8 · output [2]",
        "[1]  skipped: frozen (rules act once it requires gradients) — frozen",
        "[2]  not split: output layer — head",
        ": branches on data: .bool() was ",
        "torch.where keeps both",
        "~ plastic   + plastic and split   ! no plasticity   · as it was",
    ):
        assert words in picture
    # what every layer has stands above, and in no row
    assert picture.count("uniform") == 1
    assert picture.count("Γ=2") == 1
    full = str(everything.unfolded())
    assert "+ ├ group_sum(weight)" in full.replace("+ │ ", "+ ")
    for noise in ("placeholder", "get_attr", "mask"):
        assert noise not in full


def test_unknown_wiring_says_first_what_to_pass() -> None:
    picture = str(biofx.diff(biofx.transform(Everything(), GAMMA)))
    first = " ".join(picture.split("\n\n")[0].split())
    assert first == (
        "wiring unknown for 3 of 5 layers: pass example_inputs=(a batch,) to biofx.transform"
    )
    assert "not traced: test_diff.py:" in picture
    assert "function    unchanged by construction, to the bit" in picture
    assert "called with mask=None" in picture


def test_models_with_dummy_inputs_are_told_to_pass_them() -> None:
    class Texts(Everything):
        @property
        def dummy_inputs(self) -> dict[str, Tensor]:
            return {"x": torch.zeros(1, 4)}

    class Images(Texts):
        main_input_name = "pixel_values"

    def first(model: nn.Module) -> str:
        return " ".join(str(biofx.diff(biofx.transform(model))).split("\n\n")[0].split())

    assert "pass example_inputs=model.dummy_inputs to biofx.transform" in first(Texts())
    assert 'pass example_inputs={"pixel_values": a batch} to' in first(Images())


def test_by_construction_is_not_verified() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    bio, x = biofx.transform(model), torch.randn(3, 4)
    diff = biofx.diff(bio)
    assert "by construction" in str(diff)
    assert "verified" not in str(diff)
    checked = dataclasses.replace(diff, verified=str(biofx.verify(bio, model, x)))
    assert "verified    equal" in str(checked)


def test_names_are_listed_as_people_count() -> None:
    names = [f"h.{i}.attn" for i in (10, 2, 0, 1)] + ["head"]
    assert listed(names) == "h.0–2+10.attn, head"
    assert listed(["b.10", "b.9", "a"]) == "a, b.9–10"
    assert listed(["layer10", "layer9"]) == "layer9, layer10"
    assert listed([f"x{i}y" for i in range(9)], most=3) == "x0y, x1y and 7 more"
    assert listed([""]) == "(the model)"


def test_the_function_line() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    def function(**fields: object) -> str:
        return biofx.diff(biofx.transform(model, biofx.BioConfig().replace(**fields))).function

    assert function() == "identical"
    assert function(weight_splitting_Gamma=2) == "changed"
    assert function(weight_splitting_Gamma=2, weight_splitting_mode="expand") == "rounding"


def test_every_rule_that_is_on_is_named() -> None:
    config = biofx.BioConfig(
        crystallize_every=1, rejuvenate_every=20, volume_dependent_every=2,
        unit_turnover_every=1, restore_strength=1e-3, apply_dales_principle=True,
    )  # fmt: skip
    assert plasticity(config) == (
        "uniform ν=0.16 · volume-dependent rate every 2 steps · crystallize every step · "
        "rejuvenate every 20 steps · unit turnover every step · restore k=0.001 · Dale"
    )


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
    assert "`-inner" in ascii_only
    assert "Gamma=2 in groups" in ascii_only
    monkeypatch.setenv("TERM", "dumb")
    assert printed().isascii()
    assert str(everything).isascii()


def test_print_is_as_wide_as_the_terminal(
    everything: GraphDiff, monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns, width in ((40, 80), (80, 80), (133, 133)):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert str(everything) == everything.render(width)


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
        assert "in 156 layers" in picture
        full = diff.unfolded().render(width).splitlines()
        assert sum(line.startswith("~") and " Conv2d " in line for line in full) == 155
        assert not any(line.startswith("⋮") for line in full)


def test_equal_siblings_are_told_once() -> None:
    model = ResNet((2, 2, 2, 2), expansion=1)
    picture = str(biofx.diff(biofx.transform(model, example_inputs=torch.randn(1, 3, 32, 32))))
    assert "1: like 0" in picture
    different = nn.Sequential(*(nn.Linear(4 + i, 5 + i) for i in range(6)))
    lines = str(biofx.diff(biofx.transform(different))).splitlines()
    assert sum(line.startswith("~ ") and " Linear " in line for line in lines) == 6


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
    assert " more: " in picture


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
    assert "shared with embed" in str(diff)
    assert "16 · crystal_thresh=0.25" in str(diff)
    assert diff.tree.parameters == 40 + 20
    assert "other settings for middle" in str(diff)


def test_a_module_called_twice_is_unfolded_once() -> None:
    diff = biofx.diff(transformed(BY_NAME["called_twice"], biofx.BioConfig()))
    again = [node for node in diff.tree.walk() if node.again]
    assert again
    assert "again" in str(diff)
    assert len({node.node for node in diff.tree.walk() if node.op}) == sum(diff.nodes.values())


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


HOSTILE = "\x1b[31m\x1b]0;own\x07\r\n<script>alert(1)</script>\"'&\u202e\u2028"


HOSTILE_SHOWN = r"""\x1b[31m\x1b]0;own\x07\r\n<script>alert(1)</script>"'&\u202e\u2028"""


def hostile() -> nn.Module:
    model = nn.Sequential()
    model.add_module(HOSTILE, nn.Linear(4, 4))
    kind = type(HOSTILE, (nn.Linear,), {})
    model.add_module(f"{HOSTILE}2", kind(4, 4).requires_grad_(False))
    model.add_module("head", nn.Linear(4, 2))
    return model


def test_names_never_reach_the_terminal_as_control_codes() -> None:
    diff = biofx.diff(biofx.transform(hostile(), GAMMA, example_inputs=torch.randn(1, 4)))
    for text in (diff.render(200), diff.unfolded().render(80), repr(diff), diff.render(40)):
        assert all(line.isprintable() for line in text.split("\n"))
    assert r"\x1b[31m\x1b]0;own\x07\r\n<script>" in diff.render(200)
    colours = Console(file=io.StringIO(), width=200, force_terminal=True, color_system="standard")
    colours.print(diff)
    assert "\x1b]0" not in colours.file.getvalue()  # type: ignore[attr-defined]


class _Page(HTMLParser):
    """The elements and the text of a page; fails where elements do not nest."""

    VOID = frozenset({"meta", "input", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.texts.append(data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", SOME, ids=str)
def test_the_page_holds_everything(entry: Architecture) -> None:
    bio = transformed(entry, GAMMA)
    diff, record = biofx.diff(bio), record_of(bio)
    page = _Page(diff.to_html())
    text = " ".join(page.texts)
    for layer in record.layers.values():
        if layer.reason is not None:
            assert clean(layer.reason) in text
    rows = [row for tag, row in page.tags if tag == "div" and "data-s" in row]
    told = Counter(str(row["data-s"]) for row in rows)
    for status in ("replaced", "split", "skipped"):
        nodes = [n for n in diff.tree.walk() if n.status == status and n.path is not None]
        assert told[status] >= len([n for n in nodes if not n.again])


# What notebooks say of every table, list of terms and piece of code in an output.
JUPYTER = """<style>
.jp-OutputArea-output.jp-RenderedHTMLCommon table { table-layout: fixed; }
:not(.jp-RenderedMarkdown).jp-RenderedHTMLCommon td { text-align: right; }
.jp-OutputArea-output dt { float: left; width: 20%; }
.jp-OutputArea-output dd { float: left; width: 80%; }
.jp-RenderedHTMLCommon :not(pre) > code { background-color: #eee; }
</style><div class="jp-OutputArea-output jp-RenderedHTMLCommon">"""
STYLES = """
const style = selector => getComputedStyle(document.querySelector(selector));
return [
  style('.biofx .reasons td').textAlign, style('.biofx .reasons').tableLayout,
  style('.biofx dt').float, style('.biofx dd').float,
  style('.biofx .reasons code').backgroundColor,
]
"""


@pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))
def test_notebooks_do_not_change_how_it_looks(tmp_path: Path) -> None:
    config = biofx.BioConfig(weight_splitting_Gamma=2)
    diff = biofx.diff(biofx.transform(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), config))
    (tmp_path / "page.html").write_text(JUPYTER + diff._repr_html_(), encoding="utf-8")
    with browser.Browser() as window:
        window.open(tmp_path / "page.html")
        assert window.run(STYLES) == ["left", "auto", "none", "none", "rgba(0, 0, 0, 0)"]


class _Unpacking(nn.Module):
    """A block that cannot be traced without an example."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(sum(self.up(row) * self.gate(row) for row in x))


def test_blocks_that_cannot_be_traced_are_folded_too() -> None:
    """Their reasons name the block, and so differ."""
    diff = biofx.diff(biofx.transform(nn.Sequential(*[_Unpacking() for _ in range(12)])))
    text = str(diff)
    assert "11 blocks like 0" in text
    assert "[1]" in text.split("not traced: ")[0]
    assert "11 blocks like 0" in diff.to_html()


def test_the_page_has_a_column_of_outputs_only_where_shapes_are_known() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    without = biofx.diff(biofx.transform(model)).to_html()
    known = biofx.diff(biofx.transform(model, example_inputs=torch.zeros(1, 4))).to_html()
    assert "<span>Output</span>" in known
    assert 'class="tree shaped"' in known
    assert "<span>Output</span>" not in without
    assert "shaped" not in without.partition("</style>")[2]


def test_the_page_needs_nothing_and_folds() -> None:
    model = ResNet((3, 8, 36, 3), expansion=4)
    diff = biofx.diff(biofx.transform(model, example_inputs=torch.randn(1, 3, 32, 32)))
    text = diff.to_html()
    page = _Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe")
        assert not {"src", "href"} & set(attributes)
    assert "http" not in text.replace("http-equiv", "")
    assert "url(" not in text
    closed = [a for tag, a in page.tags if tag == "details" and a.get("class") == "group"]
    assert closed
    assert not any("open" in attributes for attributes in closed)
    assert "34 blocks like 1" in text
    assert len(text) < 2_000_000
    assert diff._repr_html_() in text


def test_names_never_reach_a_page_or_a_graph_as_code() -> None:
    bio = biofx.transform(hostile(), GAMMA, example_inputs=torch.randn(1, 4))
    diff = biofx.diff(bio)
    page = _Page(diff.to_html())
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert any(HOSTILE_SHOWN in text for text in page.texts)
    assert not any(set(a) & {"onclick", "onerror", "onload"} for _, a in page.tags)
    dot = diff.to_dot()
    assert all(line.isprintable() for line in dot.split("\n"))
    if shutil.which("dot"):
        subprocess.run(["dot", "-Tsvg"], input=dot, text=True, check=True, capture_output=True)
    assert all(part.isprintable() for part in (repr(biofx.info(bio)), repr(diff)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", SOME, ids=str)
def test_the_graph_for_graphviz(entry: Architecture) -> None:
    bio = transformed(entry, GAMMA)
    diff, graph = biofx.diff(bio), biofx.info(bio).graph
    dot = diff.to_dot()
    edges = {line.strip() for line in dot.splitlines() if " -> " in line and "label" not in line}
    shown = {node.node for node in diff.tree.walk() if node.op}
    wanted = {
        f'"{source.name}" -> "{node.name}";'
        for node in graph.nodes
        for source in node.all_input_nodes
        if node.name in shown and source.op not in ("get_attr", "placeholder")
    }
    assert wanted <= edges
    assert dot.count("{") == dot.count("}")
    if shutil.which("dot"):
        subprocess.run(["dot", "-Tdot"], input=dot, text=True, check=True, capture_output=True)


def test_notebooks_and_prompts_show_little_and_enough() -> None:
    bio = biofx.transform(Everything(), GAMMA, example_inputs=torch.randn(3, 4))
    info = biofx.info(bio)
    assert repr(info.diff) == (
        "<GraphDiff of Everything: 2 augmented, 2 split, 1 skipped; print it to see it>"
    )
    assert repr(info).startswith("<Transformation of Everything: layers: 2 augmented, 2 split")
    assert "wiring known" in repr(info)
    _Page(info._repr_html_())
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.1)
    scheduler = biofx.GradScheduler(bio, optimizer)
    bio(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    assert repr(scheduler).startswith("<GradScheduler of Everything: ")
    assert repr(scheduler).endswith("; steps taken: 1>")
    assert len(repr(scheduler)) < 200
    assert "steps taken: 1" in " ".join(_Page(scheduler._repr_html_()).texts)
    scheduler.detach()


def test_what_was_not_transformed_has_no_diff() -> None:
    with pytest.raises(biofx.ModelError, match=r"not made by biofx\.transform"):
        biofx.diff(nn.Linear(2, 2))


def test_wrapped_models_are_looked_through() -> None:
    bio = biofx.transform(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    assert str(biofx.diff(torch.compile(bio))) == str(biofx.diff(bio))  # type: ignore[arg-type]
    assert str(biofx.info(bio).diff) == str(biofx.diff(bio))


def test_types_take_the_room_that_is_there() -> None:
    class AProjectionWithAnExceedinglyLongName(nn.Linear):
        pass

    name = AProjectionWithAnExceedinglyLongName.__name__
    model = nn.Sequential(AProjectionWithAnExceedinglyLongName(4, 4), nn.Linear(4, 2))
    diff = biofx.diff(biofx.transform(model, example_inputs=torch.ones(1, 4)))
    assert f" {name} " in diff.render(140)
    assert name not in diff.render(80)
