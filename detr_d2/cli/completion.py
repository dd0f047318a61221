"""Command ``completion``: a script that completes commands and flags in a shell."""

import argparse
import importlib
import shlex
import textwrap
from functools import partial

from detr_d2.cli.arguments import CommandParser
from detr_d2.cli.command import run_command

EXAMPLES = """
examples:
  bash, in ~/.bashrc:       eval "$(detr-d2 completion bash)"
  zsh, in ~/.zshrc:         eval "$(detr-d2 completion zsh)"
  fish:                     detr-d2 completion fish > ~/.config/fish/completions/detr-d2.fish
"""


def make_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser("completion", "Print a script that completes commands and flags in a shell.", EXAMPLES)
    parser.add_argument("shell", choices=SCRIPTS, help="bash, zsh or fish")
    return parser


def run(args: argparse.Namespace) -> None:
    """Print the script."""
    from detr_d2.cli.main import COMMANDS

    texts = {name: text for name, (_, text) in COMMANDS.items()}
    print(SCRIPTS[args.shell](texts, {name: list_flags(module) for name, (module, _) in COMMANDS.items()}))


def list_flags(module: str) -> dict[str, str]:
    """Return what ``make_parser`` of a command's module shows: help by flag, or by choice; {} where it has none."""
    try:
        parser = importlib.import_module(module).make_parser()
    except (ImportError, AttributeError):
        return {}
    flags = {}
    for action in parser._actions:
        if action.help == argparse.SUPPRESS:
            continue
        names = [name for name in action.option_strings if name.startswith("--")]
        text = textwrap.shorten(action.help or "", 70, placeholder=" …")
        flags.update(dict.fromkeys(names or map(str, action.choices or ()), text))
    return flags


def bash(commands: dict[str, str], flags: dict[str, dict[str, str]]) -> str:
    """Return the script for bash; file names complete where no flag does."""
    cases = "\n".join(f"        {name}) words={shlex.quote(' '.join(x))} ;;" for name, x in flags.items())
    return f"""\
_detr_d2() {{
    local words={shlex.quote(" ".join([*commands, "--help", "--version"]))}
    if [ "$COMP_CWORD" -gt 1 ]; then
        words=
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _detr_d2 detr-d2"""


def zsh(commands: dict[str, str], flags: dict[str, dict[str, str]]) -> str:
    """Return the script for zsh, with a description of each word."""

    def describe(words: dict[str, str]) -> str:
        return " ".join(shlex.quote(f"{name}:{text.replace(':', ';')}") for name, text in words.items())

    cases = "\n".join(f"            {name}) options=({describe(x)}) ;;" for name, x in flags.items())
    return f"""\
#compdef detr-d2
_detr_d2() {{
    local -a options
    if (( CURRENT == 2 )); then
        options=({describe(commands)})
    else
        case "${{words[2]}}" in
{cases}
        esac
    fi
    _describe option options || _files
}}
compdef _detr_d2 detr-d2"""


def fish(commands: dict[str, str], flags: dict[str, dict[str, str]]) -> str:
    """Return the script for fish, with a description of each word."""
    lines = [
        f"complete -c detr-d2 -n __fish_use_subcommand -f -a {name} -d {shlex.quote(text)}"
        for name, text in commands.items()
    ]
    for command, names in flags.items():
        for name, text in names.items():
            word = f"-l {name[2:]}" if name.startswith("--") else f"-f -a {name}"
            lines.append(
                f"complete -c detr-d2 -n '__fish_seen_subcommand_from {command}' {word} -d {shlex.quote(text)}"
            )
    return "\n".join(lines)


SCRIPTS = {"bash": bash, "zsh": zsh, "fish": fish}


main = partial(run_command, make_parser, run)
