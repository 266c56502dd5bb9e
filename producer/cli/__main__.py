"""The command `capflow`, of which each command like `capflow-produce` is a part."""

from importlib import import_module

import click

from producer.cli.options import Group

#: The module of each subcommand, in the order in which the help lists them.
COMMANDS = {
    "caption": "caption",
    "retry": "caption",
    "resume": "caption",
    "plan": "plan",
    "status": "runs",
    "stop": "runs",
    "delete": "runs",
    "report": "runs",
    "score": "caption",
    "agreement": "agreement",
    "eval": "evaluation",
    "filter": "filter",
    "export": "export",
    "domains": "domains",
    "doctor": "fleet",
    "metrics": "fleet",
    "db": "fleet",
}
ALIASES = {"produce": "caption"}


class LazyGroup(Group):
    """A group that imports the module of a subcommand when it needs it."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        name = ALIASES.get(name, name)
        if name not in COMMANDS:
            return None
        # `eval` is a function of Python's own.
        attribute = "evaluate" if name == "eval" else name
        command: click.Command = getattr(import_module(f"producer.cli.{COMMANDS[name]}"), attribute)
        return command


@click.command(cls=LazyGroup)
def capflow() -> None:
    """Caption datasets of images and videos with a fleet of vLLM workers.

    `capflow COMMAND --help` explains a command. RUN is a run's name or the plan that it came from.
    `produce` is another name of `caption`.

    Examples:
      capflow plan Metafile.json -o plan.jsonl
      capflow caption plan.jsonl -o captions
      capflow report plan.jsonl
    """


if __name__ == "__main__":
    capflow(prog_name="capflow")
