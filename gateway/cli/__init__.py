"""The command line: a file for each command."""


def main() -> None:
    """Run the command that the arguments name."""
