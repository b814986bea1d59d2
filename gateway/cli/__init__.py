"""The command line: a file for each command, imported only when it is asked for."""

import importlib
import os
import sys

import click

from gateway import __version__
from gateway.settings import SettingsError, check_environment

_COMMANDS = ("serve", "check", "explain", "keys", "usage", "release")


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"gateway.cli.{cmd_name}").command
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="gateway")
def group() -> None:
    """One OpenAI-compatible URL in front of every language model: routed by policy, metered exactly, traced."""


def main() -> None:
    """Run the command that the arguments name."""
    try:
        check_environment(os.environ)
    except SettingsError as error:
        click.echo(f"gateway: {error}", err=True)
        sys.exit(2)
    group(prog_name="gateway")
