"""The page of a run: what it shows, in a browser; what it refuses, and what it says is missing."""

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import biofx
from biofx.cli import main
from biofx.plasticity import GradScheduler
from biofx.report.file import checked, read
from biofx.report.page import embedded, page

from . import browser

HOSTILE = "</script><script>document.title='owned'</script>"
NAMES = [HOSTILE, "\"'`&lt;<b>bold</b>", "\x1b[31mred\x00", "\u202eright to left", "<!--"]

needs_browser = pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))


def recorded(
    model: nn.Module, features: int, *, steps: int = 12, compile: Any = "auto", **config: Any
) -> biofx.Recorder:
    torch.manual_seed(0)
    settings = {"crystallize_every": 2, "crystal_thresh": 0.05, "rejuvenate_every": 4, **config}
    example = torch.randn(8, features)
    bio = biofx.transform(model, biofx.BioConfig(**settings), example_inputs=example)
    optimizer = torch.optim.AdamW(bio.parameters(), lr=0.01)
    recorder = biofx.Recorder(GradScheduler(bio, optimizer, compile=compile), every=1)
    for _ in range(steps):
        optimizer.zero_grad()
        bio(torch.randn(8, features)).square().mean().backward()
        optimizer.step()
    return recorder


def small() -> biofx.Recorder:
    parts = [("first", nn.Linear(6, 8)), ("act", nn.ReLU()), ("second", nn.Linear(8, 4))]
    block = nn.Sequential()
    for name, part in parts:
        block.add_module(name, part)
    model = nn.Sequential(block, nn.ReLU(), nn.Linear(4, 3))
    dale = {"apply_dales_principle": True, "dale_initialisation": "signs"}
    return recorded(model, 6, overrides={"2": dale})


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("history") / "run.json"
    small().save(path)
    return path


@pytest.fixture(scope="module")
def window() -> Iterator[browser.Browser]:
    with browser.Browser() as opened:
        yield opened


def show(window: browser.Browser, folder: Path, text: str) -> None:
    (folder / "run.html").write_text(text, encoding="utf-8")
    window.open(folder / "run.html")


def shown(window: browser.Browser) -> str:
    text: str = window.run("return document.body.innerText")
    return text


# ---- without a browser


def test_the_command_writes_the_page(
    history: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.html"
    assert main(["report", str(history), "-o", str(out)]) == 0
    assert "wrote" in capsys.readouterr().out
    assert out.read_text(encoding="utf-8") == page(read(history))
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_recorder_gives_the_same_page(tmp_path: Path) -> None:
    recorder = small()
    recorder.save(tmp_path / "run.json")
    embedded_in = re.compile(r'id="history">(.*?)</script>', re.DOTALL)
    [ours] = embedded_in.findall(recorder.to_html())
    [theirs] = embedded_in.findall(page(read(tmp_path / "run.json")))
    ours, theirs = json.loads(ours), json.loads(theirs)
    for layer in theirs["layers"]:
        assert layer.pop("missing") == {}
    assert ours == theirs


@pytest.mark.parametrize("name", NAMES)
def test_a_name_cannot_leave_its_script_element(name: str) -> None:
    text = embedded({"name": name})
    assert not set(text) & set("<>&")
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text) == {"name": name}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: the run that should have written it has not finished"),
        ("[1, 2", "is cut short, damaged or not JSON"),
        ("[1, 2]", "is not a history of a run; write one with"),
        ("{}", "is not a history of a run; write one with"),
        ("[" * 100_000, "is not a history of a run"),
        ('{"kind": "biofx history", "format": 99}', "has format 99; this biofx reads format 1"),
        ('{"kind": "biofx history", "format": 1}', "is damaged: it has no 'steps'"),
    ],
)
def test_what_is_no_history_is_refused_in_one_line(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    path.write_text(content, encoding="utf-8")
    assert main(["report", str(path), "-o", str(tmp_path / "run.html")]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run.html").exists()


@pytest.mark.parametrize("name", ["run.pdf", "run", "run.svg"])
def test_a_page_is_html(
    name: str, history: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(history), "-o", str(tmp_path / name)]) == 1
    assert f"{name}: the page is HTML; end its name in .html" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def test_files_that_cannot_be_read_or_written_are_named(history: Path, tmp_path: Path) -> None:
    with pytest.raises(biofx.ReportError, match=r"cannot read .*none\.json"):
        read(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(biofx.ReportError, match="it is not text"):
        read(tmp_path / "bytes.json")
    with pytest.raises(biofx.ReportError, match=r"cannot write .*run\.json"):
        small().save(tmp_path / "none" / "run.json")
    assert list(tmp_path.glob("*.tmp")) == []


DAMAGE: dict[str, Any] = {
    "numbers": {"factor_q50": [1.0]},
    "factors": "AAAA",
    "updates": "not base64!",
    "before": {"rows": 2},
    "after": None,
    "synapses": [{"place": [1]}],
    "shape": "wide",
}


@pytest.mark.parametrize("part", DAMAGE)
def test_a_damaged_part_is_taken_out_and_named(
    part: str, history: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(history.read_text(encoding="utf-8"))
    content["layers"][1][part] = DAMAGE[part]
    del content["layers"][2][part]
    mended = checked(copy.deepcopy(content))["layers"]
    assert mended[0]["missing"] == {}
    for layer in mended[1:]:
        assert list(layer["missing"]) == [part]
        assert layer[part] is None
    damaged = tmp_path / "run.json"
    damaged.write_text(json.dumps(content), encoding="utf-8")
    assert main(["report", str(damaged), "-o", str(tmp_path / "run.html")]) == 0
    assert "parts of 2 of 3 weights are missing" in capsys.readouterr().err


def test_numbers_that_json_does_not_know_are_damage(history: Path, tmp_path: Path) -> None:
    text = history.read_text(encoding="utf-8").replace('"factor_mean":[', '"factor_mean":[NaN,', 1)
    (tmp_path / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(biofx.ReportError, match="holds NaN"):
        read(tmp_path / "run.json")


def test_drawing_a_page_loads_no_torch(history: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from biofx.cli import main\n"
        f"assert main(['report', {str(history)!r}, '-o', {str(tmp_path / 'run.html')!r}]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# ---- in a browser

# How many colours each canvas shows at 400 places.
COLOURS = """
return [...document.querySelectorAll('main .card > .chart canvas, .matrix canvas')]
  .filter(canvas => canvas.width)
  .map(canvas => {
    const found = new Set(), context = canvas.getContext('2d');
    for (let i = 0; i < 400; i++) {
      const x = i * 7919 % canvas.width, y = i * 104729 % canvas.height;
      found.add(context.getImageData(x, y, 1, 1).data.join());
    }
    return found.size;
  })
"""
# Milliseconds to show a layer, ascending, of 60 steps up and down the tree.
PACE = """
const found = [];
document.querySelector('.row[tabindex="0"]').focus();
for (let i = 0; i < 60; i++) {
  const start = performance.now(), key = i < 30 ? 'ArrowDown' : 'ArrowUp';
  document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
  document.body.offsetHeight;
  found.push(performance.now() - start);
}
return found.sort((a, b) => a - b)
"""
TITLE = "return document.querySelector('h2').firstChild.textContent"
ROWS = "return [...document.querySelectorAll('.row .name')].map(row => row.textContent)"


@needs_browser
def test_a_click_on_a_layer_shows_it(
    window: browser.Browser, history: Path, tmp_path: Path
) -> None:
    show(window, tmp_path, page(read(history)))
    assert window.run(TITLE) == "first"
    assert window.run(ROWS) == ["Sequential", "0", "first", "second", "2"]
    window.click(".row", 4)
    assert window.run(TITLE) == "2"
    text = shown(window)
    for part in (
        "Stabilised",
        "Replaced",
        "Silent units",
        "Weights before and after",
        "Distribution of weights",
        "Updates over time",
        "Single synapses, from birth to death",
        "DalesPrinciple",
        "12",
    ):
        assert part in text
    assert window.run("return location.hash") == "#2"
    drawn = window.run(COLOURS)
    assert len(drawn) == 4  # factors, updates, two matrices
    assert min(drawn) > 3  # colours
    window.click(".row", 0)
    assert "Plasticity of each layer, step by step" in shown(window)
    window.click("td button", 1)
    assert window.run(TITLE) == "second"


# Titles of cards whose legend lies over them.
OVERLAPS = """
return [...document.querySelectorAll('.card')].filter(card => {
  const legend = card.querySelector('.legend'), title = document.createRange();
  if (!legend) return false;
  title.selectNodeContents(card.querySelector('h3'));
  const a = title.getBoundingClientRect(), b = legend.getBoundingClientRect();
  return a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
}).map(card => card.querySelector('h3').textContent)
"""
WEIGHT_TICKS = """
const card = [...document.querySelectorAll('.card')]
  .find(card => card.querySelector('h3').textContent === 'Weights over time');
return [...card.querySelectorAll('text')].map(text => text.textContent)
"""


@needs_browser
def test_legends_leave_titles_free(window: browser.Browser, history: Path, tmp_path: Path) -> None:
    show(window, tmp_path, page(read(history)))
    try:
        for width in (1440, 1280, 1110, 800):
            window.size(width, 900)
            assert window.run(OVERLAPS) == [], width
    finally:
        window.size(1440, 900)


@needs_browser
def test_numbers_are_short_and_axes_have_several(
    window: browser.Browser, history: Path, tmp_path: Path
) -> None:
    content = read(history)
    for layer in content["layers"]:
        numbers, samples = layer["numbers"], len(content["steps"])
        for name, value in (("factor_q05", 1e-45), ("factor_q50", 1e-29), ("weight_min", -0.45)):
            numbers[name] = [value] * samples
        for name, value in (("weight_max", 0.45), ("weight_q05", -0.3), ("weight_q95", 0.3)):
            numbers[name] = [value] * samples
    show(window, tmp_path, page(content))
    assert "≈ 0" in shown(window)
    assert "e−" not in shown(window)
    assert {"−0.4", "−0.2", "0", "0.2", "0.4"} <= set(window.run(WEIGHT_TICKS))


def function(file: str, name: str) -> str:
    """The code of one of the page's functions."""
    code = resources.files("biofx.report.page").joinpath(file).read_text(encoding="utf-8")
    found = re.search(rf"^function {name}\(.*?^}}$", code, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[0] + "\n"


@needs_browser
def test_scales_have_two_numbers_and_rows_different_names(
    window: browser.Browser, history: Path, tmp_path: Path
) -> None:
    content = read(history)
    show(window, tmp_path, page({**content, "every": 1, "steps": [1, 2, 3, 4]}))
    assert "one each step" in shown(window)
    show(window, tmp_path, page(content))
    scales = [[-0.45, 0.45, 2], [-0.9, 0.9, 1], [0.1, 7.3, 2], [0, 1e-9, 2], [0, 100, 5]]
    script = function("charts.js", "ticks") + "return arguments[0].map(a => ticks(...a))"
    for ticks in window.run(script, scales):
        assert 2 <= len(ticks) <= 9, ticks
    assert ticks == [0, 20, 40, 60, 80, 100]
    part = "attention.self.query_projection"
    names = [*(f"encoder.layers.{i}.{part}" for i in range(3)), "head", "x" * 30, "x" * 31]
    script = function("lives.js", "shorten") + "return shorten(arguments[0], 20)"
    short = window.run(script, names)
    assert short == [
        *(f"…{i}…query_projection" for i in range(3)),
        "head",
        f"5 …{'x' * 17}",
        f"6 …{'x' * 17}",
    ]
    assert "3 weights" in shown(window)
    assert "layers" not in window.run("return document.querySelector('#run').textContent")


@needs_browser
def test_it_asks_nothing_of_anybody_and_complains_of_nothing(
    window: browser.Browser, history: Path, tmp_path: Path
) -> None:
    window.requests()
    window.log()
    show(window, tmp_path, page(read(history)))
    for place in range(5):
        window.click(".row", place)
        window.point(700, 400)
        window.point(700, 600)
    window.click("#log")
    window.click("#theme")
    assert {url.split(":")[0] for url in window.requests()} <= {"file", "data"}
    assert [entry["message"] for entry in window.log()] == []
    # and could not, if it tried
    window.run("new Image().src = 'http://127.0.0.1:9/pixel.png'")
    browser.until(lambda: any("violates" in entry["message"] for entry in window.log()))


@needs_browser
def test_arrow_keys_walk_through_the_tree(
    window: browser.Browser, history: Path, tmp_path: Path
) -> None:
    show(window, tmp_path, page(read(history)))
    focus = "return document.activeElement.querySelector('.name')?.textContent"
    window.run("document.querySelector('.row[tabindex=\"0\"]').focus()")
    assert window.run(focus) == "first"
    window.press("down")
    assert (window.run(focus), window.run(TITLE)) == ("second", "second")
    window.press("left")
    assert window.run(focus) == "0"
    window.press("left")  # folds it
    assert window.run("return document.activeElement.getAttribute('aria-expanded')") == "false"
    assert window.run("return document.querySelectorAll('.row').length") == 3
    window.press("right", "right")
    assert window.run(focus) == "first"
    window.press("end")
    assert (window.run(focus), window.run(TITLE)) == ("2", "2")
    assert (
        window.run("return document.querySelectorAll('[tabindex=\"0\"][role=treeitem]').length")
        == 1
    )
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert window.run(outline) == "solid"
    window.press("/", *"sec")
    assert window.run(ROWS) == ["Sequential", "0", "second"]


@needs_browser
def test_it_follows_the_readers_theme_until_told_otherwise(
    window: browser.Browser, history: Path, tmp_path: Path
) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    window.prefer("light")
    show(window, tmp_path, page(read(history)))
    light = window.run(paper)
    window.prefer("dark")
    browser.until(lambda: window.run(paper) != light)
    dark = window.run(paper)
    window.click("#theme")
    assert window.run(paper) == light
    window.prefer("light")
    window.prefer("dark")
    assert window.run(paper) == light
    assert dark != light
    window.prefer("light")


@needs_browser
def test_names_of_a_model_are_shown_as_text(
    window: browser.Browser, history: Path, tmp_path: Path
) -> None:
    content = read(history)
    content["model"] = HOSTILE
    content["skipped"] = [{"name": NAMES[1], "type": NAMES[2], "reason": HOSTILE}]
    content["tree"][""] = HOSTILE
    for layer, name in zip(content["layers"], NAMES[2:], strict=True):
        layer["name"] = layer["layer"] = name
        layer["rules"] = layer["shared"] = [HOSTILE]
        layer["type"] = HOSTILE
    window.log()
    show(window, tmp_path, page(content))
    for place in range(window.run("return document.querySelectorAll('.row').length")):
        window.click(".row", place)
        assert HOSTILE in shown(window)
    text = shown(window)
    assert window.run("return document.title") == f"{HOSTILE} · a synapse’s life"
    assert window.run("return document.querySelectorAll('script').length") == 2
    assert window.run("return document.querySelectorAll('main b b, .row b').length") == 0
    assert "\u241b[31mred\u2400" in text
    assert "‹U+202E›right to left" in text
    assert [entry["message"] for entry in window.log()] == []


@needs_browser
def test_it_says_what_is_missing(window: browser.Browser, history: Path, tmp_path: Path) -> None:
    content = json.loads(history.read_text(encoding="utf-8"))
    content["layers"] = content["layers"][:1]
    content["layers"][0].update(DAMAGE)
    show(window, tmp_path, page(checked(content)))
    text = shown(window)
    assert "Parts of this layer’s history are missing" in text
    assert text.count("The history is damaged here") == 6
    assert window.log() == []

    empty = recorded(nn.Linear(3, 2), 3, steps=0)
    show(window, tmp_path, empty.to_html())
    assert "Nothing was recorded yet" in shown(window)
    show(window, tmp_path, empty.to_html().replace('"steps":[]', '"steps":[}', 1))
    assert "This page is damaged" in shown(window)


@needs_browser
@pytest.mark.slow
def test_two_hundred_layers_stay_small_and_smooth(window: browser.Browser, tmp_path: Path) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(torch.relu(self.up(x)))

    model = nn.Sequential(*[Block() for _ in range(100)])
    steps = 42
    seldom = {"crystallize_every": 10, "rejuvenate_every": 20}
    recorder = recorded(model, 64, steps=steps, compile=False, **seldom)
    assert len(recorder.history.steps) == recorder.history.limit < steps
    text = recorder.to_html()
    assert len(text.encode()) < 3_000_000
    show(window, tmp_path, text)
    assert window.run("return document.querySelectorAll('.row').length") >= 100
    times = window.run(PACE)
    assert times[30] < 100, times  # half of the layers are shown within a tenth of a second
