"""What the tools' command lines have in common."""

import argparse


def parser(tool: str, documentation: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the module's documentation: its first line above, the rest below."""
    first, rest = (documentation or "").split("\n", 1)
    return argparse.ArgumentParser(
        prog=f"tools/{tool}",
        description=first,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
