"""Print a script that completes commands and flags in a shell.

Examples:
  bash, in ~/.bashrc:       eval "$(detr-d2 completion bash)"
  zsh, in ~/.zshrc:         eval "$(detr-d2 completion zsh)"
  fish:                     detr-d2 completion fish > ~/.config/fish/completions/detr-d2.fish
"""

import argparse
import textwrap
from shlex import quote

from detr_d2.cli.arguments import CommandParser
from detr_d2.cli.command import Command


def _add_flags(parser: CommandParser) -> None:
    parser.add_argument("shell", choices=SCRIPTS, help="bash, zsh or fish")


def run(args: argparse.Namespace) -> None:
    """Print the script."""
    from detr_d2.cli.main import COMMANDS

    first = {**COMMANDS, "--help": "list the commands", "--version": "print versions"}
    print(SCRIPTS[args.shell]({"": first, **{command: list_flags(command) for command in COMMANDS}}))


def list_flags(command: str) -> dict[str, str]:
    """Return the help texts of a command by flag, or by choice; {} for the benchmarks, a separate program."""
    from detr_d2.cli.main import find_command

    main = find_command(command)
    flags = {}
    for action in main.make_parser()._actions if isinstance(main, Command) else ():
        if action.help != argparse.SUPPRESS:
            names = [name for name in action.option_strings if name.startswith("--")]
            text = textwrap.shorten(action.help or "", 70, placeholder=" …")
            flags.update(dict.fromkeys(names or map(str, action.choices or ()), text))
    return flags


def bash(words: dict[str, dict[str, str]]) -> str:
    """Return the script for bash; ``words``: help texts by word, by preceding command, "" before the first word."""
    cases = "\n".join(f"        {quote(command)}) choices={quote(' '.join(x))} ;;" for command, x in words.items())
    return f"""\
_detr_d2() {{
    local command= choices=
    [ "$COMP_CWORD" -gt 1 ] && command="${{COMP_WORDS[1]}}"
    case "$command" in
{cases}
    esac
    COMPREPLY=($(compgen -W "$choices" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _detr_d2 detr-d2"""


def zsh(words: dict[str, dict[str, str]]) -> str:
    """Return the script for zsh, with the help of each word."""
    cases = ""
    for command, choices in words.items():
        described = " ".join(quote(f"{word}:{text.replace(':', ';')}") for word, text in choices.items())
        cases += f"        {quote(command)}) choices=({described}) ;;\n"
    return f"""\
#compdef detr-d2
_detr_d2() {{
    local command=
    local -a choices
    (( CURRENT > 2 )) && command="${{words[2]}}"
    case "$command" in
{cases}    esac
    _describe word choices || _files
}}
compdef _detr_d2 detr-d2"""


def fish(words: dict[str, dict[str, str]]) -> str:
    """Return the script for fish, with the help of each word."""
    lines = []
    for command, choices in words.items():
        condition = f"__fish_seen_subcommand_from {command}" if command else "__fish_use_subcommand"
        for word, text in choices.items():
            option = f"-l {word[2:]}" if word.startswith("--") else f"-f -a {word}"
            lines.append(f"complete -c detr-d2 -n '{condition}' {option} -d {quote(text)}")
    return "\n".join(lines)


SCRIPTS = {"bash": bash, "zsh": zsh, "fish": fish}

main = Command("completion", __doc__, _add_flags, run)
