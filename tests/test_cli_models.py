"""How the command line finds the model in a file, and how it says where the file fails."""

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from torch import nn

from biofx.cli import main
from biofx.cli.errors import CommandError
from biofx.cli.load import load_model

HEAD = "import torch\nfrom torch import nn\n"
NET = "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
NET += "        self.fc = nn.Linear(2, 2)\n    def forward(self, x):\n        return self.fc(x)\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None)
        if file is None or str(tmp_path) in file:
            del sys.modules[name]


def write(name: str, code: str) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEAD + dedent(code), encoding="utf-8")


@pytest.mark.parametrize(
    ("code", "spec", "kind"),
    [
        (NET, "model.py", "Net"),
        (NET, "model.py:Net", "Net"),
        (NET, "./model.py", "Net"),
        (NET, "model", "Net"),
        (NET, "model:Net", "Net"),
        (NET + "net = Net()\n", "model.py", "Net"),
        (NET + "net = Net()\nsame = net\n", "model.py", "Net"),
        ("net = nn.Linear(2, 2)\n", "model.py", "Linear"),
        ("def make(bias=True):\n    return nn.Linear(2, 2, bias)\n", "model.py:make", "Linear"),
        ("make = lambda: nn.Linear(2, 2)\n", "model.py:make", "Linear"),
        ("class Zoo:\n    net = nn.Linear(2, 2)\n", "model.py:Zoo.net", "Linear"),
        # a part that needs arguments is no candidate, nor is what was imported
        (NET + "class Part(nn.Module):\n    def __init__(self, n): ...\n", "model.py", "Net"),
        (NET + "from torch.nn import ReLU, Identity\n", "model.py", "Net"),
        # a class is no candidate beside an instance
        (NET + "class Other(nn.Module): ...\nnet = Net()\n", "model.py", "Net"),
        # dataclasses and pickle look their module up
        (
            "import dataclasses\n@dataclasses.dataclass\nclass C:\n    x: int\n" + NET,
            "model.py",
            "Net",
        ),
    ],
)
def test_models_that_are_found(code: str, spec: str, kind: str) -> None:
    write("model.py", code)
    assert type(load_model(spec)).__name__ == kind
    assert not Path("__pycache__").exists()


@pytest.mark.parametrize("name", ["types.py", "torch.py", "my-model.py", "class.py", "2nd.py"])
def test_files_whose_names_mean_something_else(name: str, folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    write(f"elsewhere/{name}", NET)
    sys.path.append(str(folder))
    assert type(load_model(f"elsewhere/{name}")).__name__ == "Net"


def test_neighbours_and_packages() -> None:
    write("plain/blocks.py", NET)
    write("plain/model.py", "from blocks import Net\nmodel = Net()\n")
    assert isinstance(load_model("plain/model.py"), nn.Module)
    write("loose/parts.py", NET)
    write("loose/model.py", "from .parts import Net\nfrom . import parts\nmodel = Net()\n")
    assert isinstance(load_model("loose/model.py"), nn.Module)
    write("zoo_of_tests/__init__.py", "")
    write("zoo_of_tests/nets/__init__.py", "")
    write("zoo_of_tests/parts.py", NET)
    write("zoo_of_tests/nets/model.py", "from ..parts import Net\nmodel = Net()\n")
    assert isinstance(load_model("zoo_of_tests/nets/model.py"), nn.Module)
    assert isinstance(load_model("zoo_of_tests.nets.model:model"), nn.Module)
    assert isinstance(load_model("zoo_of_tests.parts"), nn.Module)


def test_an_imported_instance_is_not_the_files_own() -> None:
    write("other.py", NET + "net = Net()\n")
    write("model.py", "from other import net\nmine = nn.Linear(2, 2)\n")
    assert isinstance(load_model("model.py"), nn.Linear)


def test_a_script_that_imports_its_model() -> None:
    write("nets.py", NET)
    write("train.py", "from nets import Net\nfrom torch.nn import Linear\n")
    with pytest.raises(
        CommandError,
        match=r"train\.py defines no nn\.Module; it imports some, name one: train\.py:Net$",
    ):
        load_model("train.py")
    assert type(load_model("train.py:Net")).__name__ == "Net"


@pytest.mark.parametrize(
    ("code", "spec", "message"),
    [
        (NET, "nope.py", "there is no file nope.py"),
        (NET, "no/such/model.py", "there is no file no/such/model.py"),
        (NET, "nope.nope", "there is no module 'nope.nope'"),
        (NET, "model.Net", "there is no module 'model.Net', nor a file of that name; did you mean"),
        (
            "from torch.nn import Linear\nfrom torch.ao.nn.qat import Linear as Q\n",
            "model.py",
            "model.py defines no nn.Module",
        ),
        (NET, "..", ".. is a directory"),
        (NET, "model.py:", "'model.py:' ends in a colon; name the model"),
        (NET, "model.py:net", "model.py has no 'net'; did you mean 'Net'?"),
        (NET, "model.py:zebra", "model.py has no 'zebra'; it has Net"),
        (NET, "model.py:nn", "got an object of type module"),
        (NET, "model.py:torch.Tensor", "got the class Tensor"),
        ("x = 3\n", "model.py", "model.py defines no nn.Module"),
        ("", "model.py", "model.py defines no nn.Module"),
        ("def make():\n    return nn.ReLU()\n", "model.py", "name it: model.py:make"),
        (
            "def make():\n    return 3\n",
            "model.py:make",
            "make() made an object of type int, not an nn.Module",
        ),
        ("def make(n):\n    return 3\n", "model.py:make", "it needs n"),
        (
            "class A(nn.Module): ...\nclass B(nn.Module): ...\n",
            "model.py",
            "model.py holds several models; name one: model.py:A, model.py:B",
        ),
        (
            "a, b = nn.ReLU(), nn.ReLU()\n",
            "model.py",
            "model.py holds several models; name one: model.py:a, model.py:b",
        ),
        (
            "class A(nn.Module):\n    def __init__(self, n, *, k): ...\n",
            "model.py",
            "no nn.Module class of model.py can be made without arguments (A needs n, k)",
        ),
        ("def f(:\n", "model.py", "model.py:3: SyntaxError: invalid syntax (while"),
        (
            "import no_such_package\n",
            "model.py",
            "model.py:3: ModuleNotFoundError: No module named",
        ),
        ("\n1 / 0\n", "model.py", "model.py:4: ZeroDivisionError: division by zero (while import"),
        ("import sys\nsys.exit(3)\n", "model.py", "model.py:4: it calls sys.exit(3)"),
        ("nn.Linear('a', 2)\n", "model.py", "model.py:3: TypeError"),
        (
            "class A(nn.Module):\n    def __init__(self):\n        raise ValueError('no\\ndata')\n",
            "model.py",
            "model.py:5: ValueError: no (while calling A())",
        ),
        ("raise KeyError\n", "model.py", "model.py:3: KeyError (while importing it)"),
    ],
)
def test_models_that_are_not_found(
    code: str, spec: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write("model.py", code)
    assert main(["inspect", spec]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert [path.name for path in Path.cwd().iterdir()] == ["model.py"]


def test_files_that_are_not_python() -> None:
    Path("image.png").write_bytes(b"\x89PNG\x00\x01")
    Path("model.py").write_bytes(b"\x00\x01\x02")
    Path("latin.py").write_bytes("# é\n".encode("latin-1"))
    for name in ("image.png", "model.py", "latin.py"):
        with pytest.raises(CommandError, match=name):
            load_model(name)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("net = nn.ReLU()\n", "ReLU has no weight layer"),
        ("net = nn.LazyLinear(3)\n", "lazy layers have no weights yet"),
    ],
)
def test_models_that_cannot_be_transformed(
    code: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write("model.py", code)
    assert main(["inspect", "model.py"]) == 1
    assert message in capsys.readouterr().err


def test_the_file_sees_its_own_arguments() -> None:
    code = """
    import argparse, sys
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=2)
    width = parser.parse_args().width
    net = nn.Linear(width, width)
    seen = list(sys.argv)
    def make():
        return nn.Linear(len(sys.argv), 2)
    """
    write("model.py", code)
    before = list(sys.argv)
    try:
        sys.argv[1:] = ["inspect", "model.py", "--gamma", "2"]
        assert isinstance(load_model("model.py:net"), nn.Linear)
        assert load_model("model.py:make").in_features == 1
        assert sys.argv[1:] == ["inspect", "model.py", "--gamma", "2"]
    finally:
        sys.argv[:] = before


def test_a_src_layout() -> None:
    write("src/lab_of_tests/__init__.py", "")
    write("src/lab_of_tests/parts.py", NET)
    write("src/lab_of_tests/model.py", "from lab_of_tests.parts import Net\nnet = Net()\n")
    assert isinstance(load_model("lab_of_tests.model"), nn.Module)
    assert isinstance(load_model("src/lab_of_tests/model.py"), nn.Module)


def test_a_module_that_is_not_found_says_what_to_do() -> None:
    write("src/other_lab/parts.py", NET)
    write("scripts/model.py", "from other_lab.parts import Net\nnet = Net()\n")
    with pytest.raises(CommandError, match=r"No module named 'other_lab'.*PYTHONPATH=src$"):
        load_model("scripts/model.py")
    write("needs.py", "import no_such_package\n")
    with pytest.raises(CommandError, match=r"install it for .*python"):
        load_model("needs.py")
    with pytest.raises(CommandError, match=r"give the path of the file, FILE\.py"):
        load_model("no_such_package.model")
