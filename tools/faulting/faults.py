"""The faults: each lets one thing go wrong, and tells what was lost."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import biofx
from faulting.training import Training, same

STEPS = 24
NOBODY = 65534


@dataclass
class Outcome:
    """What came of a fault.

    Attributes:
        happened: what was done, and what was seen of it.
        lost: what was lost.
        sound: whether nothing was lost silently: the rest is to the bit as without the fault, or
            an error says what is not.
    """

    happened: str
    lost: str
    sound: bool


def killed(folder: Path) -> Outcome:
    """SIGKILL while it trains and saves, again and again; then it goes on."""
    command = [sys.executable, "-m", "faulting.training", str(folder), str(STEPS)]
    kills, taken = 0, 0
    for pause in (0.03, 0.11, 0.2, 0.05):
        process = subprocess.Popen([*command, "0.01"], stdout=subprocess.PIPE, cwd=TOOLS)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(pause)
        kills += process.poll() is None
        process.kill()
        rest = process.stdout.read().split()
        process.wait()
        taken = max(taken, int(rest[-1]) if rest else 0)
    end = subprocess.run(command, cwd=TOOLS, capture_output=True, check=True)
    resumed = int(end.stdout.split()[0]) - 1 if end.stdout.split() else STEPS
    found = torch.load(folder / "checkpoint.pt", weights_only=True)
    return Outcome(
        f"killed {kills} times; resumed at step {resumed} in the end",
        f"{max(taken - resumed, 0)} saved steps; the step under way each time",
        resumed >= taken and same(found, Training().run(STEPS).state()),
    )


def full(folder: Path) -> Outcome:
    """No space left while a checkpoint is written."""
    training, file = Training().run(5), folder / "checkpoint.pt"
    training.save(file)
    training.run(8)
    script = (
        "import resource, signal, sys, torch; from pathlib import Path\n"
        "from faulting.training import Training\n"
        "training = Training(); training.load(torch.load(sys.argv[1], weights_only=True))\n"
        "training.run(8)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "training.save(Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", script, str(file)]
    run = subprocess.run(command, cwd=TOOLS, capture_output=True, text=True, check=False)
    last = shortened((run.stderr.strip().splitlines() or [""])[-1])
    again = Training()
    again.load(torch.load(file, weights_only=True))
    sound = again.steps == 5 and same(again.run(STEPS).state(), training.run(STEPS).state())
    died = (
        f"status {run.returncode}" if run.returncode >= 0 else signal.Signals(-run.returncode).name
    )
    return Outcome(
        f"the process that saved ended with {died} ({last})",
        "the steps since the last whole checkpoint, which is as it was",
        sound and run.returncode != 0,
    )


def read_only(folder: Path) -> Outcome:
    """A checkpoint into a folder that may not be written to."""
    training = Training().run(6)
    folder.chmod(0o555)
    child = os.fork()
    if not child:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setuid(NOBODY)
            training.save(folder / "checkpoint.pt")
        except (OSError, RuntimeError):
            status = 0
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    folder.chmod(0o755)
    return Outcome(
        "torch.save raised" if status == 0 else f"the writer ended with status {status}",
        "nothing: the run goes on",
        status == 0
        and not list(folder.iterdir())
        and same(training.run(STEPS).state(), Training().run(STEPS).state()),
    )


class Hungry(torch.optim.AdamW):
    """Asks for a block of memory in its step, as steps over all parameters at once do."""

    def step(self, closure: Any = None) -> Any:
        torch.empty(2**26)
        return super().step(closure)


def memory(folder: Path) -> Outcome:
    """The optimizer gets no memory in its step, three times at each of some steps."""
    training, seen = Training(optimizer=Hungry), []
    for step in (1, 5, 8):
        training.run(step - 1)
        for _ in range(3):
            training.backward()
            try:
                with limited(2**20):
                    training.optimizer.step()
            except (RuntimeError, MemoryError) as error:
                seen.append(shortened(str(error).rpartition("] ")[2].splitlines()[0]))
            seen += [] if training.steps == step - 1 else ["a step was counted"]
    return Outcome(
        f"{len(seen)} steps raised ({seen[0]})",
        "nothing: tried again, they are taken as if for the first time",
        len(seen) == 9 and same(training.run(STEPS).state(), unharmed(Hungry)),
    )


def interrupted(folder: Path) -> Outcome:
    """Ctrl+C at any moment of a step: before, in, or after the optimizer's own."""
    config = biofx.BioConfig(
        fuzzy_lr_distribution="baseline", crystallize_every=1, crystal_thresh=1e9
    )
    training = Training(config=config)
    for _ in range(3):
        training.step()
    start = time.perf_counter()
    training.step()
    length = time.perf_counter() - start
    caught, counted, twice = 0, 0, 0
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for moment in range(1, 60):
            before = training.steps
            try:
                signal.signal(signal.SIGALRM, signal.default_int_handler)
                training.backward()
                signal.setitimer(signal.ITIMER_REAL, length * moment / 60)
                training.optimizer.step()
            except KeyboardInterrupt:
                caught += 1
                counted += training.steps - before
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGINT, previous)
    # At each step that was, every synapse is dampened once; at one that was not, none.
    least = 0.6**training.steps
    for state in training.scheduler.state_dict()["state"]["Crystallize"].values():
        twice += int((state["factors"] < least * 0.99).sum())
    clean = training.optimizer.state[next(training.model.parameters())]["step"]
    return Outcome(
        f"{caught} interrupts in 59 steps; {counted} of these steps count, for weights had moved; "
        f"the optimizer counts {int(clean)}, plasticity {training.steps}",
        f"{twice} synapses dampened twice for one step",
        twice == 0 and caught > 5,
    )


def threads(folder: Path) -> Outcome:
    """A second thread takes a step of the same optimizer in the middle of one."""
    inside, go_on = threading.Event(), threading.Event()

    class Waiting(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            if threading.current_thread() is not threading.main_thread():
                inside.set()
                go_on.wait(60)
            return super().step(closure)

    training = Training(optimizer=Waiting)
    training.backward()
    other = threading.Thread(target=training.optimizer.step)
    other.start()
    inside.wait(60)
    message = "was taken"
    try:
        training.optimizer.step()
    except biofx.PlasticityError as error:
        message = f"raised ({shortened(str(error))})"
    go_on.set()
    other.join()
    sound = "raised" in message and same(training.run(STEPS).state(), unharmed(Waiting))
    return Outcome(f"the second step {message}", "nothing: the first one was taken", sound)


def forked(folder: Path) -> Outcome:
    """A child process, forked in the middle of training, goes on by itself; so does its parent."""
    training = Training().run(7)
    child = os.fork()
    if not child:
        training.run(STEPS)
        training.save(folder / "child.pt")
        os._exit(0)
    expected = Training().run(STEPS).state()
    ours = same(training.run(STEPS).state(), expected)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    theirs = status == 0 and same(torch.load(folder / "child.pt", weights_only=True), expected)
    return Outcome(
        f"child ended with status {status}", "nothing: both end to the bit alike", ours and theirs
    )


TOOLS = Path(__file__).parents[1]
FAULTS: dict[str, Callable[[Path], Outcome]] = {
    "kill": killed,
    "disk": full,
    "read-only": read_only,
    "memory": memory,
    "interrupt": interrupted,
    "threads": threads,
    "fork": forked,
}


def unharmed(optimizer: Any) -> dict[str, Any]:
    """The end of a run without a fault, by the same optimizer: rules tell optimizers apart."""
    return Training(optimizer=optimizer).run(STEPS).state()


def shortened(text: str) -> str:
    """The beginning of a message, cut between words."""
    return textwrap.shorten(text, 90, placeholder=" …")


@contextmanager
def limited(more: int) -> Iterator[None]:
    """With no more memory than there is now, and a little."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def run(name: str) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        return FAULTS[name](Path(folder))
