"""The command line: what it writes, and what it says when it cannot."""

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

import biofx
from biofx.cli import main
from biofx.cli.inputs import inputs_of
from biofx.cli.load import load_model

NET = """
import torch
from torch import nn

print("the model says hello")

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(10, 20)
        self.fc2 = nn.Linear(20, 2)

    def forward(self, x):
        return self.fc2(self.fc1(x).relu())
"""
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with model.py; what a command adds to the interpreter is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)
    (tmp_path / "model.py").write_text(NET, encoding="utf-8")
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None)
        if file is None or str(tmp_path) in file:
            del sys.modules[name]


def process(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "biofx", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **environment},
    )


def fails(capsys: Captured, status: int, *arguments: str) -> str:
    """Run a command that must fail; returns the one line that it says why in."""
    before = sorted(Path.cwd().rglob("*"))
    capsys.readouterr()
    assert main(arguments) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.removeprefix("the model says hello\n").splitlines()
    assert not any("Traceback" in line for line in lines)
    assert len(lines) == 1, lines
    assert lines[0].startswith("biofx")
    assert sorted(Path.cwd().rglob("*")) == before, "something was left behind"
    return lines[0]


# --- what works ----------------------------------------------------------------------------------


def test_in_a_process_of_its_own() -> None:
    run = process("inspect", "model.py", "--input", "4,10", "--verify")
    assert run.returncode == 0, run.stderr
    assert "~ fc1 " in run.stdout
    assert "verified    equal bit for bit in train and eval mode" in run.stdout
    assert max(map(len, run.stdout.splitlines())) <= 80
    assert "\x1b" not in run.stdout
    assert run.stderr == "the model says hello\n"
    assert [path.name for path in Path.cwd().iterdir()] == ["model.py"]


def test_ascii_output_where_the_terminal_has_no_more() -> None:
    run = process("inspect", "model.py", "--gamma", "2", PYTHONIOENCODING="ascii")
    assert run.returncode == 0, run.stderr
    assert run.stdout.isascii()
    assert "Gamma=2 in groups" in run.stdout
    run = process("inspect", "model.py", "--format", "json", PYTHONIOENCODING="ascii")
    assert json.loads(run.stdout)["model"] == "Net"
    assert process("inspect", "--help", PYTHONIOENCODING="ascii").returncode == 0


def test_names_reach_no_terminal_as_control_codes(capsys: Captured) -> None:
    name = "\x9b2J\x07\u202e\udcff"  # a C1 control, which JSON does not have to escape, and worse
    code = f"""
from torch import nn
class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleDict({{{name!a}: nn.Linear(4, 4)}})
    def forward(self, x):
        return self.heads[{name!a}](x)
"""
    Path("odd.py").write_text(code, encoding="utf-8")
    for form in ("text", "rich", "json", "dot"):
        assert main(["inspect", "odd.py:Odd", "--full", "--format", form]) == 0
        out = capsys.readouterr().out
        assert out.replace("\n", "").isprintable(), (form, out)
        if form == "json":
            assert json.dumps(name)[1:-1] in json.dumps(json.loads(out))  # nothing is lost


def test_a_closed_pipe_is_no_error() -> None:
    command = f"'{sys.executable}' -m biofx inspect model.py --full | true"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert run.returncode == 0
    assert run.stderr == "the model says hello\n"


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("form", ["rich", "text"])
def test_formats_and_widths(capsys: Captured, form: str, width: int) -> None:
    arguments = ["inspect", "model.py", "--format", form, "--width", str(width), "--gamma", "2"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= width
    assert "+ fc1 " in out


def test_full(capsys: Captured) -> None:
    assert main(["inspect", "model.py", "--full", "--gamma", "2"]) == 0
    assert "├ group_sum(weight)" in capsys.readouterr().out


def test_json_is_the_diff(capsys: Captured, folder: Path) -> None:
    arguments = ["inspect", "model.py", "--format", "json", "--input", "4,10", "--gamma", "2"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert main([*arguments, "-o", "diff.json"]) == 0
    assert json.loads((folder / "diff.json").read_text(encoding="utf-8")) == found
    assert "Γ" in (folder / "diff.json").read_text(encoding="utf-8")
    assert capsys.readouterr().out.startswith("wrote diff.json (json, ")
    config = biofx.BioConfig(weight_splitting_Gamma=2)
    bio = biofx.transform(load_model("model.py"), config, example_inputs=torch.zeros(4, 10))
    assert found == json.loads(json.dumps(biofx.diff(bio).to_dict()))


def test_output_file(folder: Path, capsys: Captured) -> None:
    target = folder / "diff.txt"
    target.write_text("old", encoding="utf-8")
    target.chmod(0o640)
    link = folder / "link.txt"
    link.symlink_to(target)
    assert main(["inspect", "model.py", "-o", "link.txt"]) == 0
    assert link.is_symlink()
    assert "~ fc1 " in target.read_text(encoding="utf-8")
    assert target.stat().st_mode & 0o777 == 0o640
    assert main(["inspect", "model.py", "-o", os.devnull]) == 0
    assert not Path(os.devnull).is_file()
    assert {path.name for path in folder.iterdir()} == {"model.py", "diff.txt", "link.txt"}
    size = f"{target.stat().st_size:,}"
    assert capsys.readouterr().out == f"wrote link.txt (text, {size} bytes)\n"


@pytest.mark.parametrize(
    ("name", "begin"),
    [("d.html", "<!doctype html>"), ("d.JSON", "{"), ("d.dot", "digraph"), ("d.txt", "Net\n")],
)
def test_the_suffix_tells_the_format(capsys: Captured, name: str, begin: str) -> None:
    assert main(["inspect", "model.py", "-o", name]) == 0
    assert Path(name).read_text(encoding="utf-8").startswith(begin)
    assert capsys.readouterr().out.startswith(f"wrote {name} (")
    if not name.endswith("txt"):
        line = fails(capsys, 1, "inspect", "model.py", "-o", name, "--format", "text")
        assert f"the suffix of {name!r} means --format" in line


@pytest.mark.parametrize("name", ["diff.pdf", "diff", "diff.md"])
def test_a_name_that_tells_no_format(capsys: Captured, name: str) -> None:
    line = fails(capsys, 1, "inspect", "model.py", "-o", name)
    assert f"the name {name!r} does not tell the format; end it in .html (html), .json" in line
    assert main(["inspect", "model.py", "-o", name, "--format", "html"]) == 0
    assert Path(name).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_pipe_as_the_file_to_write() -> None:
    """What /dev/stdout links to in a pipeline, pipe:[123], is no path."""
    run = process("inspect", "model.py", "--format", "html", "-o", "/dev/stdout")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("<!doctype html>")
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "biofx", "inspect", "model.py", "--format", "html"]
    gone = subprocess.run(
        [*command, "-o", "/dev/stdout"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert gone.returncode == 0, gone.stderr


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("m.pth", (), "does not tell the format; end it in .pt (torchscript), .pt2"),
        ("m.pt", ("--format", "onnx"), "the suffix of 'm.pt' means --format torchscript, not onnx"),
    ],
)
def test_a_format_is_refused_before_the_model_is_imported(
    capsys: Captured, name: str, more: tuple[str, ...], message: str
) -> None:
    """A file that trains as it is imported takes an hour first."""
    assert main(["export", "model.py", "-o", name, *more]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "the model says hello" not in said


def test_settings_of_every_kind(capsys: Captured, folder: Path) -> None:
    (folder / "bio.toml").write_text(
        'fuzzy_learning_rate_factor_nu = 0.1\ncrystal_thresh = 0.5\nexclude = ["fc1"]\n',
        encoding="utf-8",
    )
    arguments = [
        *("inspect", "model.py", "--format", "json", "--config", "bio.toml", "--nu", "0.3"),
        *("--distribution", "lognormal", "--split", "expand", "--dale"),
        *("--crystallize-every", "1", "--rejuvenate-every", "50", "--volume-every", "2"),
        *("--rejuvenate-choose", "weak", "--restore", "1e-3", "--unit-turnover-every", "10"),
        *("--unit-turnover-utility", "dormant"),
        *("--set", "rejuvenate_law=lognormal", "--set", "base_lr = 0.2", "--include", "fc*"),
        *("--output-layers", "fc2"),
    ]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["config"] == {
        "fuzzy_learning_rate_factor_nu": 0.3,
        "fuzzy_lr_distribution": "lognormal",
        "crystal_thresh": 0.5,
        "exclude": ["fc1"],
        "include": ["fc*"],
        "outputs": ["fc2"],
        "weight_splitting_mode": "expand",
        "apply_dales_principle": True,
        "crystallize_every": 1,
        "rejuvenate_every": 50,
        "volume_dependent_every": 2,
        "rejuvenate_law": "lognormal",
        "rejuvenate_choose": "weak",
        "restore_strength": 1e-3,
        "unit_turnover_every": 10,
        "unit_turnover_utility": "dormant",
        "base_lr": 0.2,
    }


def test_the_settings_of_the_paper(capsys: Captured, folder: Path) -> None:
    arguments = ["inspect", "model.py", "--format", "json", "--paper", "--nu", "0.1"]
    assert main(arguments) == 0
    paper = biofx.BioConfig.paper(fuzzy_learning_rate_factor_nu=0.1)
    assert json.loads(capsys.readouterr().out)["config"] == paper.to_dict()
    (folder / "bio.toml").write_text("rejuvenation_parameter_dre = 20.0\n", encoding="utf-8")
    assert main([*arguments, "--config", "bio.toml"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["rejuvenation_parameter_dre"] == 20


@pytest.mark.filterwarnings("default:no weight layer")
def test_a_glob_that_matches_nothing(capsys: Captured) -> None:
    assert main(["inspect", "model.py", "--exclude", "fc9"]) == 0
    captured = capsys.readouterr()
    line = "biofx inspect: warning: no weight layer of Net matches exclude 'fc9' (did you mean 'fc"
    assert line in captured.err
    assert "unused      no weight layer matches exclude 'fc9'" in captured.out


def test_inputs_of_every_kind(capsys: Captured, folder: Path) -> None:
    (folder / "many.py").write_text(
        "from torch import nn\n"
        "class Many(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.embed, self.fc = nn.Embedding(2, 4), nn.Linear(4, 2)\n"
        "    def forward(self, ids, scale, *, mask=None):\n"
        "        return self.fc(self.embed(ids)) * scale * mask[..., None]\n",
        encoding="utf-8",
    )
    texts = ["2,3:int64", ":float32", "mask=2,3:bool"]
    assert main(["inspect", "many.py", *(f"--input={text}" for text in texts)]) == 0
    out = capsys.readouterr().out
    assert "ids 2×3, scale scalar, mask 2×3" in out
    (ids, scale), kwargs = inputs_of(texts) or ((), {})
    assert (ids.dtype, ids.shape) == (torch.int64, (2, 3))
    assert (scale.dtype, scale.shape) == (torch.float32, ())
    assert (kwargs["mask"].dtype, kwargs["mask"].shape) == (torch.bool, (2, 3))
    args, _ = inputs_of(["2×3:float16", "4:complex64", "0,3"]) or ((), {})
    assert [arg.dtype for arg in args] == [torch.float16, torch.complex64, torch.float32]
    assert [tuple(arg.shape) for arg in args] == [(2, 3), (4,), (0, 3)]


@pytest.mark.parametrize(
    "value",
    [torch.ones(4, 10), (torch.ones(4, 10),), [torch.ones(4, 10)], {"x": torch.ones(4, 10)}],
    ids=lambda value: type(value).__name__,
)
def test_an_input_from_a_file(capsys: Captured, value: object) -> None:
    torch.save(value, "batch.pt")
    assert main(["inspect", "model.py", "--input", "batch.pt", "--verify"]) == 0
    out = capsys.readouterr().out
    assert "inputs      x 4×10" in out
    assert "verified    equal" in out


def test_inputs_from_files_that_will_not_do(capsys: Captured) -> None:
    torch.save(nn.Linear(2, 2), "code.pt")
    torch.save("text", "text.pt")
    Path("empty.pt").write_bytes(b"")
    for name, message in (
        ("code.pt", "--input code.pt holds more than tensors in tuples, lists and dicts"),
        ("empty.pt", "or is not a file of torch.save"),
        ("text.pt", "--input text.pt holds a str; expected a tensor, a tuple"),
    ):
        assert message in fails(capsys, 1, "inspect", "model.py", "--input", name)
    torch.save(torch.ones(4, 10), "batch.pt")
    line = fails(capsys, 2, "inspect", "model.py", "--input", "batch.pt", "--input", "3")
    assert "a file holds all arguments; give it alone" in line


def test_the_models_own_example(capsys: Captured, folder: Path) -> None:
    own = "    dummy_inputs = {'x': torch.ones(3, 10)}\n"
    (folder / "own.py").write_text(NET + own, encoding="utf-8")
    assert main(["inspect", "own.py", "--verify"]) == 0
    assert "inputs      x 3×10" in capsys.readouterr().out
    assert main(["inspect", "own.py", "--input", "4,10"]) == 0
    assert "inputs      x 4×10" in capsys.readouterr().out
    (folder / "bad.py").write_text(NET + own.replace("10", "11"), encoding="utf-8")
    assert main(["inspect", "bad.py"]) == 0
    captured = capsys.readouterr()
    assert "warning: its own dummy_inputs do not do (ModelError: while running" in captured.err
    assert "known, from tracing, without example inputs" in captured.out


def test_html_and_dot(capsys: Captured, folder: Path) -> None:
    assert main(["inspect", "model.py", "--format", "html", "-o", "diff.html"]) == 0
    assert (folder / "diff.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    capsys.readouterr()
    assert main(["inspect", "model.py", "--format", "dot"]) == 0
    out = capsys.readouterr().out
    assert out.startswith('digraph "Net" {')
    assert out.endswith("}\n")


def test_unknown_wiring_asks_for_an_input(capsys: Captured, folder: Path) -> None:
    code = NET.replace("return self", "if x.sum() > 0: x = -x\n        return self")
    (folder / "branch.py").write_text(code, encoding="utf-8")
    assert main(["inspect", "branch.py"]) == 0
    out = capsys.readouterr().out
    assert "wiring unknown for 2 of 2 layers: pass --input SHAPES or --input FILE.pt" in out


@pytest.mark.parametrize("given", [["--input", "4,10"], []], ids=["input", "none"])
def test_inspect_loads_no_more_than_it_needs(given: list[str]) -> None:
    code = (
        "import sys; from biofx.cli import main; main(sys.argv[1:]); "
        "print(sorted({'torch._dynamo', 'networkx', 'sympy', 'biofx.export', 'biofx.plasticity',"
        "'torch.onnx', 'biofx.verify'} & set(sys.modules)), file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "inspect", "model.py", *given],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert run.stderr.splitlines()[-1] == "[]"


def test_errors_hold_no_control_codes(capsys: Captured, folder: Path) -> None:
    (folder / "bad.py").write_text("raise ValueError('\\x1b[31mred\\x07')\n", encoding="utf-8")
    assert r"ValueError: \x1b[31mred\x07" in fails(capsys, 1, "inspect", "bad.py")


def test_export_writes_what_loads_without_biofx(folder: Path, capsys: Captured) -> None:
    model = nn.Sequential(nn.Linear(10, 20))
    namespace: dict[str, type[nn.Module]] = {}
    exec(NET, namespace)
    model = namespace["Net"]()
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, folder / "weights.pt")
    capsys.readouterr()
    arguments = ["export", "model.py:Net", "--weights", "weights.pt", "-o", "net.pt"]
    assert main([*arguments, "--input", "4,10"]) == 0
    assert "wrote net.pt (torchscript, " in capsys.readouterr().out
    code = (
        "import sys; sys.modules['biofx'] = None\n"
        "import torch; print(torch.jit.load('net.pt')(torch.ones(1, 10)).tolist())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with torch.no_grad():
        assert json.loads(run.stdout) == model.eval()(torch.ones(1, 10)).tolist()
    assert {path.name for path in folder.iterdir()} == {"model.py", "net.pt", "weights.pt"}


def test_export_of_split_layers_takes_plain_and_wide_weights(folder: Path) -> None:
    namespace: dict[str, type[nn.Module]] = {}
    exec(NET, namespace)
    model = namespace["Net"]()
    config = biofx.BioConfig(weight_splitting_Gamma=2, weight_splitting_mode="expand")
    torch.save(model.state_dict(), folder / "plain.pt")
    bio = biofx.transform(model, config)
    torch.save({f"module.{k}": v for k, v in bio.state_dict().items()}, folder / "wide.pt")
    outputs = []
    for name in ("plain", "wide"):
        options = ["--gamma", "2", "--split", "expand", "--no-fold"]
        arguments = ["export", "model.py", "--weights", f"{name}.pt", "-o", f"out-{name}.pt"]
        assert main([*arguments, *options]) == 0
        outputs.append(torch.jit.load(folder / f"out-{name}.pt")(torch.ones(1, 10)))
    with torch.no_grad():
        torch.testing.assert_close(outputs[0], model(torch.ones(1, 10)))
    torch.testing.assert_close(outputs[0], outputs[1])


def test_safetensors(folder: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    namespace: dict[str, type[nn.Module]] = {}
    exec(NET, namespace)
    safetensors.save_file(namespace["Net"]().state_dict(), folder / "w.safetensors")
    assert main(["export", "model.py", "--weights", "w.safetensors", "-o", "net.pt"]) == 0


def test_version_and_help_do_not_need_torch(capsys: Captured) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"biofx {biofx.__version__} (torch ")
    for command in ("inspect", "export"):
        assert main([command, "--help"]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "its code runs: use only files that you trust" in out
        assert "weights_only=True" in out
    assert main(["--help"]) == 0
    assert "weights_only=True" in capsys.readouterr().out


# --- what does not -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a command"),
        (["--nope"], "biofx: error: unrecognized argument --nope (help: biofx --help)"),
        (
            ["inspect", "model.py", "--inpt", "3,10"],
            "biofx inspect: error: unrecognized argument --inpt; did you mean --input?",
        ),
        (["inspect", "model.py", "more"], "unrecognized argument more"),
        (["inspcet", "model.py"], "invalid choice: 'inspcet'"),
        (["inspect"], "required: MODEL"),
        (["export", "model.py"], "required: -o"),
        (["inspect", "model.py", "--format", "png"], "invalid choice: 'png'"),
        (["inspect", "model.py", "--width", "10"], "between 40 and 10000"),
        (["inspect", "model.py", "--width", "wide"], "not a number of columns"),
        (["inspect", "model.py", "--verify"], "--verify needs an example input"),
        (["inspect", "model.py", "--gamma", "two"], "invalid int value"),
        (["inspect", "model.py", "--gamma", "-1"], "must be a whole number of at least 0"),
        (["inspect", "model.py", "--distribution", "cauchy"], "invalid choice: 'cauchy'"),
        (["inspect", "model.py", "--set", "gama=2"], "no field 'gama'"),
        (["inspect", "model.py", "--set", "include=3"], "include=3 must hold globs"),
        (["inspect", "model.py", "--set", "base_lr"], "expected FIELD=VALUE"),
        (
            ["inspect", "model.py", "--set", "base_lr=7"],
            "base_lr must be between 0 and 1: base_lr=7 is no number in",
        ),
        (["inspect", "model.py", "--input", "3;4"], "expected sizes with commas"),
        (["inspect", "model.py", "--input", ""], "expected sizes with commas"),
        (["inspect", "model.py", "--input", "4,x"], "expected sizes with commas"),
        (["inspect", "model.py", "--input", "4,,4"], "expected sizes with commas"),
        (["inspect", "model.py", "--input", ","], "expected sizes with commas"),
        (["inspect", "model.py", "--input", "3:float23"], "no dtype 'float23'"),
        (["inspect", "model.py", "--input", "x=3,10", "--input", "3"], "come before those with"),
        (["inspect", "model.py", "--input", "x=3", "--input", "x=3"], "given twice"),
        (["inspect", "model.py", "--input", "9999999999999999999"], "--input 9999999999999999999"),
    ],
)
def test_wrong_usage(capsys: Captured, arguments: list[str], message: str) -> None:
    assert message in fails(capsys, 2, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["inspect", "model.py", "--input", "3,11"],
            "while running the model on example_inputs: RuntimeError: ",
        ),
        (["inspect", "model.py", "--input", "no.pt"], "cannot read --input no.pt: No such file"),
        (["inspect", "-"], "cannot be read from stdin; write the code to a file"),
        (["inspect", "net.ipynb"], "jupyter nbconvert --to script net.ipynb"),
        (["inspect", "net.ipynb:model"], "jupyter nbconvert --to script net.ipynb"),
        (["inspect", "net.pt"], "net.pt holds weights, not the code of a model; give the Python"),
        (
            ["inspect", "model.py", "--config", "nope.toml"],
            "cannot read the configuration nope.toml",
        ),
        (["inspect", "model.py", "--config", "model.py"], "model.py is not valid TOML"),
        (
            ["inspect", "model.py", "--gamma", "7"],
            "no layer can be split: fc1: Γ=7 does not divide",
        ),
        (["inspect", "model.py", "--exclude", "*"], ""),
        (["inspect", ""], "MODEL is empty"),
        (["inspect", "model.py:make()"], "leave out the parentheses, model.py:make;"),
        (
            ["inspect", "model.py:Net(width=3)"],
            "such as def make(): return Net(width=3), and name it: model.py:make",
        ),
        (["inspect", "model.py", "-o", ""], "-o needs the name of a file"),
        (["inspect", "model.py", "-o", "no/such/file"], "there is no directory no/such"),
        (["inspect", "model.py", "-o", "."], "cannot write .: it is a directory"),
        (["export", "model.py", "-o", "no/such/file"], "there is no directory no/such"),
        (["export", "model.py", "-o", os.devnull], "it is not a regular file"),
        (["export", "model.py", "-o", "x.pt", "--weights", "no.pt"], "no.pt does not exist"),
        (["export", "model.py", "-o", "x.pt", "--weights", "."], ". is a directory"),
        (["export", "model.py", "-o", "x.pt", "--weights", "model.py"], "cannot read the weights"),
    ],
)
def test_it_could_not_be_done(capsys: Captured, arguments: list[str], message: str) -> None:
    if "--exclude" in arguments:  # nothing left to transform is no error: the diff says why
        assert main(arguments) == 0
        assert "excluded by the user" in capsys.readouterr().out
        return
    assert message in fails(capsys, 1, *arguments)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"fc1.weight": torch.ones(20, 10)}, "it lacks fc1.bias, fc2.weight, fc2.bias"),
        ({"a": torch.ones(1)}, "fc1.weight, fc1.bias, fc2.weight and 1 more; it also has a"),
        ({"fc1.weight": torch.ones(3, 3)}, "size mismatch for fc1.weight"),
        ([1, 2], "holds a list, not a state dict"),
        ({1: 2}, "not a state dict"),
        ({"fc1.weight": 3}, "fc1.weight"),
    ],
)
def test_weights_that_do_not_fit(capsys: Captured, state: object, message: str) -> None:
    torch.save(state, "weights.pt")
    line = fails(capsys, 1, "export", "model.py", "-o", "x.pt", "--weights", "weights.pt")
    assert message in line


def test_weights_that_would_run_code(capsys: Captured) -> None:
    torch.save(nn.Linear(2, 2), "weights.pt")
    line = fails(capsys, 1, "export", "model.py", "-o", "x.pt", "--weights", "weights.pt")
    assert "holds more than tensors" in line


@pytest.mark.parametrize("program", ["TorchScript", "torch.export"])
def test_weights_that_are_a_program(capsys: Captured, program: str) -> None:
    layer = nn.Linear(2, 2)
    if program == "TorchScript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.save(torch.jit.script(layer), "weights.pt")
    else:
        torch.export.save(torch.export.export(layer, (torch.ones(1, 2),)), "weights.pt2")
        Path("weights.pt2").rename("weights.pt")
    line = fails(capsys, 1, "export", "model.py", "-o", "x.pt", "--weights", "weights.pt")
    assert f"weights.pt is a program of {program}, not a state dict" in line
    assert line.endswith("torch.save its state_dict()")


def test_the_entry_of_a_checkpoint_that_was_taken_is_said(capsys: Captured) -> None:
    model = load_model("model.py")
    arguments = ["export", "model.py", "--weights", "w.pt", "-o", "x.pt"]
    torch.save({"epoch": 3, "model_state_dict": model.state_dict()}, "w.pt")
    assert main(arguments) == 0
    assert "export: took the entry 'model_state_dict' of w.pt\n" in capsys.readouterr().err
    torch.save(model.state_dict(), "w.pt")
    assert main(arguments) == 0
    assert "entry" not in capsys.readouterr().err
    Path("x.pt").unlink()
    torch.save({"model": model.state_dict(), "state_dict": model.state_dict()}, "w.pt")
    assert "w.pt holds several state dicts (state_dict, model)" in fails(capsys, 1, *arguments)


@pytest.mark.parametrize("content", [b"hello\n", b"", b"epoch,loss\n1,2\n"])
def test_weights_that_are_text(capsys: Captured, content: bytes) -> None:
    Path("weights.pt").write_bytes(content)
    line = fails(capsys, 1, "export", "model.py", "-o", "x.pt", "--weights", "weights.pt")
    assert "weights.pt: it is no checkpoint that torch.save wrote" in line


def test_a_model_that_is_no_text(capsys: Captured) -> None:
    Path("binary.py").write_bytes(b"\x00\x01")
    assert "binary.py is not Python source" in fails(capsys, 1, "inspect", "binary.py")
    Path("latin.py").write_bytes("# größer\n".encode("latin-1"))
    line = fails(capsys, 1, "inspect", "latin.py")
    assert "latin.py" in line
    assert "None" not in line


@pytest.mark.parametrize("content", [b"", b"\x00\x01garbage", b"PK\x03\x04 cut off"])
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_weights_that_are_no_weights(capsys: Captured, name: str, content: bytes) -> None:
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    Path(name).write_bytes(content)
    line = fails(capsys, 1, "export", "model.py", "-o", "x.pt", "--weights", name)
    assert f"cannot read the weights {name}" in line


def test_safetensors_without_the_package(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    Path("w.safetensors").write_bytes(b"")
    line = fails(capsys, 1, "export", "model.py", "-o", "x.pt", "--weights", "w.safetensors")
    assert "pip install 'biofx[weights]'" in line


def test_split_layers_cannot_be_verified_but_are_shown(capsys: Captured) -> None:
    assert main(["inspect", "model.py", "--gamma", "2", "--input", "3,10", "--verify"]) == 1
    captured = capsys.readouterr()
    assert "changed as asked for: 1 layer split" in captured.out
    assert "biofx inspect: error: " in captured.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_writable(capsys: Captured, folder: Path) -> None:
    (folder / "locked").mkdir(mode=0o500)
    assert "locked is not writable" in fails(capsys, 1, "inspect", "model.py", "-o", "locked/x")


@pytest.mark.parametrize("command", ["inspect", "export"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["model.py", "-o", "model.py"],
        ["model.py:Net", "-o", "./model.py"],
        ["model:Net", "-o", "model.py"],
        ["package.net", "-o", "package/net.py"],
        ["package", "-o", "package/__init__.py"],
        ["./model.py", "-o", "link.py"],
        ["link.py:Net", "-o", "model.py"],
        ["model.py", "--config", "bio.toml", "-o", "bio.toml"],
    ],
    ids=" ".join,
)
def test_what_a_command_reads_is_not_overwritten(
    capsys: Captured, folder: Path, command: str, arguments: list[str]
) -> None:
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text(NET, encoding="utf-8")
    (folder / "package" / "net.py").write_text(NET, encoding="utf-8")
    (folder / "link.py").symlink_to("model.py")
    (folder / "bio.toml").write_text("base_lr = 0.2\n", encoding="utf-8")
    files = [file for file in folder.rglob("*") if file.is_file()]
    before = {file: file.read_bytes() for file in files}
    line = fails(capsys, 1, command, *arguments)
    assert f"cannot write {arguments[-1]}: it is the file of the " in line
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_weights_are_not_overwritten(capsys: Captured, folder: Path) -> None:
    namespace: dict[str, type[nn.Module]] = {}
    exec(NET, namespace)
    torch.save(namespace["Net"]().state_dict(), "weights.pt")
    (folder / "link.pt").symlink_to("weights.pt")
    before = (folder / "weights.pt").read_bytes()
    for output in ("weights.pt", "link.pt", str(folder / "weights.pt")):
        line = fails(capsys, 1, "export", "model.py", "--weights", "weights.pt", "-o", output)
        assert f"cannot write {output}: it is the file of the weights" in line
        assert (folder / "weights.pt").read_bytes() == before


def test_a_full_disk_leaves_nothing(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *args: object, **kwargs: object) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    Path("kept.txt").write_text("old", encoding="utf-8")
    monkeypatch.setattr(Path, "write_text", full)
    line = fails(capsys, 1, "inspect", "model.py", "-o", "kept.txt")
    assert "cannot write kept.txt: No space left on device" in line
    assert Path("kept.txt").read_text(encoding="utf-8") == "old"


def test_what_nobody_expected(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("one\ntwo")

    monkeypatch.setattr(import_module("biofx.transform"), "transform", broken)
    line = fails(capsys, 1, "inspect", "model.py")
    assert line == "biofx: error: unexpected ZeroDivisionError: one (--debug shows where)"
    assert main(["inspect", "model.py", "--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_an_interrupt_is_quiet(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("biofx.transform"), "transform", interrupted)
    assert main(["inspect", "model.py"]) == 130
    assert capsys.readouterr().err == "the model says hello\n"


WEIGHT = "fc1.weight"
OTHER_SORTS = {
    "NaN": (torch.full((20, 10), float("nan")), "holds 200 of 200 values that are no finite"),
    "infinite": (torch.full((20, 10), float("-inf")), "holds 200 of 200 values that are no finite"),
    "NaN of one byte": (
        torch.full((20, 10), float("nan")).to(torch.float8_e4m3fn),
        "holds 200 of 200 values that are no finite",
    ),
    "whole": (torch.ones(20, 10, dtype=torch.int64), "holds torch.int64, the model torch.float32"),
    "complex": (torch.ones(20, 10, dtype=torch.cfloat), "holds torch.complex64, the model"),
    "true": (torch.ones(20, 10, dtype=torch.bool), "holds torch.bool, the model"),
    "text": ("weights", "is a str, not a tensor"),
    "nothing": (None, "is a NoneType, not a tensor"),
    "sparse": (torch.ones(20, 10).to_sparse(), "is torch.sparse_coo, not a plain tensor"),
    "empty": (torch.ones(20, 10, device="meta"), "is empty (meta device)"),
}


@pytest.mark.parametrize("sort", OTHER_SORTS)
def test_weights_of_another_sort_are_refused_by_name(capsys: Captured, sort: str) -> None:
    torch.manual_seed(0)
    value, message = OTHER_SORTS[sort]
    state = nn.ModuleDict({"fc1": nn.Linear(10, 20), "fc2": nn.Linear(20, 2)}).state_dict()
    torch.save({**state, WEIGHT: value}, "w.pt")
    assert main(["export", "model.py", "-o", "o.pt", "--weights", "w.pt"]) == 1
    error = capsys.readouterr().err
    assert f"w.pt does not fit the model: {WEIGHT} {message}" in error
    assert not Path("o.pt").exists()


def test_weights_of_another_precision_are_taken(capsys: Captured) -> None:
    state = nn.ModuleDict({"fc1": nn.Linear(10, 20), "fc2": nn.Linear(20, 2)}).state_dict()
    torch.save({**state, WEIGHT: state[WEIGHT].half()}, "w.pt")
    assert main(["export", "model.py", "-o", "o.pt", "--weights", "w.pt"]) == 0


LONG = "a" * 300
ODD = os.fsdecode(b"na\xffme")
HOPELESS: dict[str, list[str]] = {
    "long model": ["inspect", f"{LONG}.py"],
    "long output": ["inspect", "model.py", "-o", f"{LONG}.txt"],
    "long export": ["export", "model.py", "-o", f"{LONG}.pt"],
    "long weights": ["export", "model.py", "-o", "o.pt", "--weights", f"{LONG}.pt"],
    "long config": ["inspect", "model.py", "--config", f"{LONG}.toml"],
    "looping model": ["inspect", "loop.py"],
    "looping folder": ["inspect", "loop.py/model.py"],
    "looping output": ["inspect", "model.py", "-o", "loop.py"],
    "looping export": ["export", "model.py", "-o", "loop.py"],
    "looping weights": ["export", "model.py", "-o", "o.pt", "--weights", "loop.py"],
    "looping config": ["inspect", "model.py", "--config", "loop.py"],
    "odd model": ["inspect", f"{ODD}.py"],
    "odd weights": ["export", "model.py", "-o", "o.pt", "--weights", f"{ODD}.pt"],
    "odd config": ["inspect", "model.py", "--config", f"{ODD}.toml"],
    "null character": ["inspect", "model\0.py"],
    "escapes in a model": ["inspect", "\x1b]0;owned\x07.py"],
    "escapes in weights": ["export", "model.py", "-o", "o.pt", "--weights", "\x1b[2J.pt"],
    "escapes in a field": ["inspect", "model.py", "--set", "\x1b[2J=1"],
    "escapes in a value": ["inspect", "model.py", "--gamma", "2", "--set", "base_lr=\x1b[2J"],
    "deep config": ["inspect", "model.py", "--config", "deep.toml"],
    "deep value": ["inspect", "model.py", "--set", f"include={'[' * 5000}"],
    "folder of the system": ["inspect", "model.py", "-o", "/proc/biofx.txt"],
    "a function that loads": [
        "inspect", "model.py", "--gamma", "2",
        "--set", "weight_splitting_activation_function=load",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", HOPELESS)
def test_hopeless_paths_and_values_are_one_clear_line(
    capsys: Captured, folder: Path, name: str
) -> None:
    (folder / "loop.py").symlink_to("pool.py")
    (folder / "pool.py").symlink_to("loop.py")
    (folder / "deep.toml").write_text("x = " + "[" * 5000 + "]" * 5000, encoding="utf-8")
    assert main(HOPELESS[name]) in (1, 2)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.endswith("\n")
    line = printed.err[:-1].removeprefix("the model says hello\n")
    assert line.isprintable(), line
    assert re.match(r"biofx (inspect|export): error: ", line), line
    assert "unexpected" not in line
    assert "Errno" not in line
    assert len(line) < 500
    assert sorted(path.name for path in folder.iterdir()) == [
        "deep.toml",
        "loop.py",
        "model.py",
        "pool.py",
    ]


WRITES: dict[str, list[str]] = {
    "help": ["--help"],
    "help of a command": ["inspect", "--help"],
    "version": ["--version"],
    "picture": ["inspect", "model.py"],
    "json": ["inspect", "model.py", "--format", "json"],
    "export": ["export", "model.py", "-o", "net.pt"],
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("buffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("name", WRITES)
def test_stdout_that_cannot_be_written(name: str, buffered: str) -> None:
    code = "import sys; from biofx.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    environment["PYTHONUNBUFFERED"] = buffered
    command = [sys.executable, "-c", code, *WRITES[name]]
    for shell, why in ((">/dev/full", "No space left on device"), (">&-", "it is closed")):
        run = subprocess.run(
            ["sh", "-c", f'"$@" {shell}', "sh", *command],
            stderr=subprocess.PIPE, text=True, check=False, env=environment,
        )  # fmt: skip
        assert run.returncode == 1
        line = run.stderr.removeprefix("the model says hello\n")
        assert re.fullmatch(rf"biofx( \w+)?: error: cannot write to stdout: {why}\n", line), line


def test_a_very_narrow_terminal(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["inspect", "model.py"]) == 0
    narrow = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "10")
    assert main(["inspect", "model.py"]) == 0
    assert capsys.readouterr().out == narrow


GIVE = "give one for each argument of forward(x), in order, or by its name: --input NAME=SHAPE"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["y=4,10"], "--input y=4,10: forward(x) takes no 'y'; say --input x=4,10"),
        (["4,10", "y=4,10"], "--input y=4,10: forward(x) takes no 'y'"),
        (["4,10", "4"], "--input: too many positional arguments; " + GIVE),
        (["4,10", "x=4,10"], "--input: multiple values for argument 'x'; " + GIVE),
    ],
)
def test_an_input_that_the_forward_does_not_take(
    capsys: Captured, inputs: list[str], message: str
) -> None:
    given = [part for text in inputs for part in ("--input", text)]
    assert fails(capsys, 2, "inspect", "model.py", *given).endswith(message)


DECORATED = """
import functools
from torch import nn

def sums(forward):
    @functools.wraps(forward)
    def inner(self, x, y):
        return forward(self, x + y)
    return inner

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)
    @sums
    def forward(self, x):
        return self.fc(x)
"""


def test_inputs_are_those_that_a_decorator_takes(capsys: Captured) -> None:
    Path("decorated.py").write_text(DECORATED, encoding="utf-8")
    assert main(["inspect", "decorated.py", "--input", "3,4", "--input", "y=3,4"]) == 0
    assert "fc" in capsys.readouterr().out
