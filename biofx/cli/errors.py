"""What ends a command: one clear line."""


class CommandError(Exception):
    """The command could not do what it was asked to do; exit status 1."""


class UsageError(Exception):
    """The command was called wrongly; exit status 2."""


def one_line(error: BaseException, longest: int = 300) -> str:
    """An exception as one line: its type and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= longest else text[: longest - 1] + "…"
