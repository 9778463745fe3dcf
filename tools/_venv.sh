# Sourced by the commands in tools/. `ready EXTRA` leaves an environment in .venv at the top of
# the repository that holds biofx (editable) with that extra, at the versions of constraints.txt,
# and puts it first on PATH. The first run installs; later ones see by a stamp that nothing changed.
# The caller has set -euo pipefail.

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$root"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PYTHONNOUSERSITE=1
unset PYTHONPATH PYTHONHOME

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

say() { printf '── %s\n' "$*"; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v -- "$candidate"
            return
        fi
    done
    die "needs Python 3.11 or newer; found $(python3 --version 2>/dev/null || echo none)." \
        "Install one, or name it: PYTHON=/path/to/python3.11 $0"
}

ready() {
    local extra=$1 python stamp wanted
    local venv=$root/.venv
    stamp=$venv/biofx-$extra.stamp
    if ! "$venv/bin/python" -c '' 2>/dev/null; then
        python=$(find_python)
        say "making .venv with $("$python" --version)"
        rm -rf -- "$venv"
        "$python" -m venv "$venv" || {
            rm -rf -- "$venv"
            die "$python cannot make a virtual environment (on Debian and Ubuntu, its venv" \
                "module is a package of its own: python3-venv)"
        }
    fi
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        "$venv/bin/python" -m ensurepip >/dev/null || die ".venv has no pip; remove .venv and retry"
    fi
    # the interpreter's path is part of the stamp: a repository that was moved installs anew
    wanted=$(cat pyproject.toml tools/constraints.txt - <<<"$venv" | cksum)
    if [[ $(cat -- "$stamp" 2>/dev/null) != "$wanted" ]]; then
        say "installing biofx[$extra] into .venv, at the versions of tools/constraints.txt" \
            "(the first time takes minutes)"
        # the build backend first, pinned too: pip's own build environments ignore constraints
        "$venv/bin/python" -m pip install --quiet -c tools/constraints.txt hatchling \
            && "$venv/bin/python" -m pip install --quiet -c tools/constraints.txt \
                --no-build-isolation --editable ".[$extra]" \
            || die "the installation failed; what pip said stands above"
        rm -f -- "$venv"/biofx-*.stamp
        printf '%s\n' "$wanted" >"$stamp"
    fi
    export PATH="$venv/bin:$PATH" VIRTUAL_ENV=$venv
}
