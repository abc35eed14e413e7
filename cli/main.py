"""The command `slipway`: one verb a file. A verb's file is imported when it is used, so that asking for help is quick."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from contracts.errors import SlipwayError

if TYPE_CHECKING:
    from typer._click import Command, Context

VERBS = {
    "run": "Run a workload's whole pipeline; what has not changed is skipped.",
    "predict": "Predict with the published model.",
    "caption": "Write captions for a folder of pictures.",
    "serve": "Serve the published model: a page to drop pictures on, and a web service.",
    "rollout": "Let a model of algorithm distillation play: what it does, and how it learns, as JSON and films.",
    "use": "Write a preset of a workload into params.yaml.",
    "plan": "Show a workload's training plan with its reasons, or measure it.",
    "quality": "Report on the quality of the parsed data: duplicates, lengths, balance, rare things.",
    "hardware": "Show this machine's hardware and the training plan it gets.",
    "profile": "Time training steps over sizes of micro-batch, and say what to change.",
    "scale": "Time training steps over numbers of ranks: speed-up and efficiency.",
    "preflight": "Check a training before it starts: data, gradients, export, target, time, memory, disk.",
    "doctor": "Test the installation and say in words what is wrong.",
}


class Verbs(TyperGroup):
    """The verbs above; a SlipwayError of theirs is printed alone and ends with its status."""

    def list_commands(self, ctx: Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        return TyperCommand(cmd_name, help=VERBS[cmd_name]) if cmd_name in VERBS else None

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        if args and args[0] in VERBS:
            return args[0], _verb(args[0]), args[1:]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Context) -> Any:
        try:
            return super().invoke(ctx)
        except SlipwayError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(error.status) from None


def _verb(name: str) -> Command:
    """cli/NAME.py's function NAME as a command."""
    alone = typer.Typer(add_completion=False)
    alone.command(name)(getattr(importlib.import_module(f"cli.{name}"), name))
    return typer.main.get_command(alone)


app = typer.Typer(cls=Verbs, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def slipway() -> None:
    """From a labelled data set to a deployed model, on whatever hardware is there."""
