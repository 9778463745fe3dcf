"""`tools/matrix`: the suite on every Python and PyTorch that biofx supports."""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "tools" / "constraints.txt"
ENVIRONMENTS = ROOT / ".matrix"
OLDEST = (3, 11)
# What shows within minutes that a version does not fit: capture, wiring, split, export, rules.
FAST = [
    "tests/test_capture.py", "tests/test_split.py", "tests/test_registry.py",
    "tests/test_export.py", "tests/test_units.py", "tests/test_uses.py",
    "tests/plasticity/test_rules.py", "tests/plasticity/test_kernels.py", "-m", "not slow",
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/matrix", description=__doc__)
    parser.add_argument("--python", action="append", metavar="X.Y", help="only this one (repeat)")
    parser.add_argument("--torch", action="append", metavar="X.Y", help="only this one (repeat)")
    parser.add_argument("--if-present", action="store_true", help="a missing Python is no failure")
    parser.add_argument("--fast", action="store_true", help="a selection of tests, for minutes")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    arguments = parser.parse_args()
    pythons = {v: p for v, p in found_pythons().items() if v in (arguments.python or [v])}
    known = {version.rpartition(".")[0]: version for version in supported_torches()}
    torches = [known[minor] for minor in arguments.torch or known if minor in known]
    missing = [v for v in arguments.python or () if v not in pythons]
    if missing or not (pythons and torches):
        print(f"tools/matrix: no Python {', '.join(missing) or 'or PyTorch'} here to run on")
        return 0 if arguments.if_present and not pythons else 2
    tests = arguments.pytest or (
        [path for path in FAST if not path.startswith("tests/") or (ROOT / path).exists()]
        if arguments.fast
        else []
    )
    results: dict[str, str] = {}
    for version, python in sorted(pythons.items()):
        for torch in torches:
            name = f"Python {version}, torch {torch}"
            print(f"── {name}", flush=True)
            try:
                results[name] = run(environment(python, version, torch), tests)
            except subprocess.CalledProcessError as error:
                results[name] = f"not installed (exit status {error.returncode})"
    for name, result in results.items():
        print(f"{name}: {result}")
    return 0 if set(results.values()) == {"green"} else 1


def found_pythons() -> dict[str, str]:
    """{"3.11": path} of the newest of each minor version, on the path and in pyenv."""
    candidates = [
        shutil.which(f"python3.{minor}") for minor in range(OLDEST[1], sys.version_info[1] + 8)
    ]
    candidates += [shutil.which("python3"), sys.executable]
    # pyenv keeps its versions side by side, also where it is not on the path.
    beside = [Path(sys.executable).resolve().parents[2]]
    roots = [os.environ.get("PYENV_ROOT"), Path.home() / ".pyenv"]
    for versions in [*beside, *(Path(root) / "versions" for root in roots if root)]:
        try:
            candidates += [str(path) for path in sorted(versions.glob("*/bin/python"))]
        except OSError:
            continue
    found: dict[str, str] = {}
    for candidate in filter(None, candidates):
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        told = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
        version = told.stdout.strip()
        if told.returncode == 0 and tuple(map(int, version.split("."))) >= OLDEST:
            found.setdefault(version, candidate)
    return found


def supported_torches() -> list[str]:
    """The versions that the constraints name."""
    text = CONSTRAINTS.read_text(encoding="utf-8")
    return sorted(set(re.findall(r"(?m)^torch==([\d.]+)", text)))


def environment(python: str, version: str, torch: str) -> Path:
    """An environment with biofx[dev] at the pinned versions; made once for each set of pins."""
    folder = ENVIRONMENTS / f"py{version}-torch{torch}"
    constraints = folder.with_suffix(".txt")
    text = CONSTRAINTS.read_text(encoding="utf-8")
    pins = re.sub(r"(?m)^torch==.*$", "", text) + f"\ntorch=={torch}\n"
    stamp = folder / "biofx.stamp"
    wanted = hashlib.sha256((pins + (ROOT / "pyproject.toml").read_text()).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    ENVIRONMENTS.mkdir(exist_ok=True)
    constraints.write_text(pins, encoding="utf-8")
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    pip += ["--disable-pip-version-check", "--no-input", "-c", str(constraints)]
    subprocess.run([*pip, "hatchling"], check=True)
    subprocess.run([*pip, "--no-build-isolation", "--editable", f"{ROOT}[dev]"], check=True)
    stamp.write_text(wanted)
    return folder


def run(folder: Path, tests: list[str]) -> str:
    command = [str(folder / "bin" / "python"), "-m", "pytest", "-q", "-n", "auto"]
    command += ["--dist", "worksteal", *tests]
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    return "green" if status == 0 else f"failed (pytest's exit status {status})"


if __name__ == "__main__":
    sys.exit(main())
