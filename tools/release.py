"""Checks what a built wheel and source archive of biofx hold."""

import argparse
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def shipped(folder: Path) -> set[str]:
    """Files of the package as they lie in the repository."""
    return {
        path.relative_to(folder.parent).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def problems(dist: Path, version: str) -> list[str]:
    wheel_file = dist / f"biofx-{version}-py3-none-any.whl"
    source_file = dist / f"biofx-{version}.tar.gz"
    found = [f"{file.name} is not there" for file in (wheel_file, source_file) if not file.exists()]
    if found:
        return found
    expected = shipped(ROOT / "biofx")
    wheel = zipfile.ZipFile(wheel_file)
    info = f"biofx-{version}.dist-info/"
    inside = {name for name in wheel.namelist() if not name.startswith(info)}
    found += [f"the wheel lacks {name}" for name in sorted(expected - inside)]
    found += [f"the wheel holds {name}" for name in sorted(inside - expected)]
    metadata = Parser().parsestr(wheel.read(f"{info}METADATA").decode())
    if metadata["Version"] != version:
        found.append(f"the wheel says that it is version {metadata['Version']}")
    if not (metadata.get_payload() or "").strip():
        found.append("the wheel has no description")
    with tarfile.open(source_file) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in (*expected, "pyproject.toml", "README.md", "LICENSE", "tests/conftest.py"):
        if name not in names:
            found.append(f"the source archive lacks {name}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("dist", type=Path)
    parser.add_argument("version")
    options = parser.parse_args()
    found = problems(options.dist, options.version)
    for problem in found:
        print(problem)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
