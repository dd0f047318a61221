"""Documentation: its commands are parsed, without running them; its code, keys and links exist; the site builds."""

import ast
import importlib
import importlib.util
import itertools
import pkgutil
import re
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from detectron2.config import get_cfg

import benchmarks.command
import benchmarks.convergence
import detr_d2.cli.main
from detr_d2.cli.command import Command
from detr_d2.config import add_detr_config, check_training_config, load_config, load_lazy_config
from detr_d2.config.lazy import is_lazy_config
from detr_d2.utils.errors import UserError
from tests.robustness import __main__ as robustness

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{x.name}" for x in (REPOSITORY / "docs").glob("*.md"))]
NOT_PARSED = {
    "jupyter": "of nbclient",
    "pip": "installs",
    "wandb": "of Weights & Biases",
    "mlflow": "of MLflow",
    "tensorboard": "of TensorBoard",
    "scontrol": "of Slurm",
    "export": "of the shell",
    "exit": "of the shell",
    "[": "of the shell",
}
"""Other programs than ours in the documentation, with what they do."""
LAUNCHERS = ("srun", "taskset", "torchrun")
"""Programs that start another one, whose command follows theirs."""
_SEPARATORS = {"&&", "||", "|", ";"}


def read(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    """Return the text without blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def split_commands(script: str) -> Iterator[list[str]]:
    """Yield the words of each command of a shell script, without the variables that are set before it."""
    for line in script.replace("\\\n", " ").splitlines():
        for is_separator, words in itertools.groupby(shlex.split(line, comments=True), _SEPARATORS.__contains__):
            command = list(itertools.dropwhile(lambda x: re.match(r"\w+=", x), words))
            if command and not is_separator:
                yield command


class Parser:
    """Parser of the commands of the documentation: each of ours by its own parser, without running it."""

    def __init__(self):
        self.parsed: list[Namespace] = []

    def check(self, words: list[str]) -> None:
        """Raise what is wrong with a command, or with the configs and keys that it names."""
        self.parsed.clear()
        self.parse(words)
        for args in self.parsed:
            check_configs(args)

    def parse(self, words: list[str]) -> None:
        program, *rest = words
        if program in LAUNCHERS:
            first = next(i for i, x in enumerate(rest) if x in ("python", "detr-d2") or x.endswith(".py"))
            self.parse(rest[first:])
        elif program == "detr-d2":
            self.parse_ours(rest)
        elif program == "python" and rest[0] == "-m":
            sys.argv = rest[1:]
            module = importlib.import_module(rest[1])
            if hasattr(module, "__path__"):
                module = importlib.import_module(f"{rest[1]}.__main__")
            assert not self.without_work(module.main)()
        elif program == "python":
            self.parse(rest)
        elif program.endswith(".py"):
            assert not self.without_work(load_script(program).main)(rest)
        elif program == "make":
            targets = re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE)
            assert {x for x in rest if "=" not in x} <= {*targets}, f"make has the targets {targets}"
        else:
            assert program in NOT_PARSED, f"{program} is no program of ours: add it to NOT_PARSED"

    def parse_ours(self, words: list[str]) -> None:
        assert not detr_d2.cli.main.main(words), f"there is no command {words[0]}"
        for args in list(self.parsed):
            # Of `detr-d2 launch`.
            if command := vars(args).pop("command", None):
                self.parse_ours(command)

    def without_work(self, main: Callable) -> Callable:
        return replace(main, run=self.parsed.append) if isinstance(main, Command) else main

    def keep(self, args: Namespace) -> None:
        """Keep the arguments of a benchmark."""
        self.parsed.append(Namespace(opts=args.options))


def load_script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("script_of_docs", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture
def check_command(monkeypatch) -> Callable[[list[str]], None]:
    """Return a function that raises what is wrong with a command."""
    parser = Parser()
    find_command = detr_d2.cli.main.find_command

    def find(name: str) -> Callable:
        # The command itself starts the benchmarks in another process.
        return benchmarks.command.main if name == "benchmark" else parser.without_work(find_command(name))

    def start_process(*_: object, **__: object) -> None:
        raise AssertionError("the command was run")

    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(subprocess, "Popen", start_process)
    monkeypatch.setattr(detr_d2.cli.main, "find_command", find)
    monkeypatch.setattr(benchmarks.command, "run", parser.keep)
    monkeypatch.setattr(benchmarks.convergence, "main", parser.without_work(benchmarks.convergence.main))
    monkeypatch.setattr(robustness, "CAMPAIGNS", dict.fromkeys(robustness.CAMPAIGNS, lambda *_: ()))
    return parser.check


def check_configs(args: Namespace) -> None:
    """Raise a UserError if a config or a key of the parsed arguments does not exist, or has no such value."""
    names = getattr(args, "config_file", "") or ""
    for name in [names] if isinstance(names, str) else names:
        if not name.startswith("output/") and is_lazy_config(name):
            load_lazy_config(name, [x for x in args.opts if "=" in x])
            continue
        # The config of a run does not exist here.
        cfg = load_config("" if name.startswith("output/") else name, getattr(args, "opts", ()))
        cfg.MODEL.DEVICE = "cpu"
        check_training_config(cfg, getattr(args, "num_gpus", None) or 1)


@pytest.mark.parametrize("page", PAGES)
def test_commands(page, check_command, capsys):
    faults = []
    for script in fenced(read(page), "bash"):
        for words in split_commands(script):
            try:
                check_command(words)
            except (UserError, AssertionError, OSError) as e:
                faults.append(f"{shlex.join(words)}: {e}")
            except SystemExit as e:
                if e.code:
                    faults.append(f"{shlex.join(words)}: {capsys.readouterr().err.splitlines()[-1]}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("detr-d2 trian --config-file detr-r50", "there is no command trian"),
        ("detr-d2 train --config-file detr-r51", "The config detr-r51 does not exist"),
        ("python train_net.py --config-file configs/detr_256.yaml", "does not exist"),
        ("detr-d2 train --config-file detr-r50 SOLVER.MAX_ITERS 3", "there is no config key SOLVER.MAX_ITERS"),
        ("detr-d2 train --config-file detr-r50 SOLVER.MAX_ITER many", "SOLVER.MAX_ITER is 'many': set an integer"),
        ("detr-d2 train --config-file detr-r50 --num-gpus 3", "SOLVER.IMS_PER_BATCH 64 is not a multiple"),
        ("detr-d2 launch local --gpus 0 train --config-file detr-r51", "The config detr-r51 does not exist"),
        ("detr-d2 benchmark inference MODEL.DETR.LAYERS 3", "there is no config key MODEL.DETR.LAYERS"),
        ("torchrun --nproc_per_node 8 train_net.py --config-file detr-r51", "The config detr-r51 does not exist"),
        ("make tests", "make has the targets"),
        ("yolo train", "yolo is no program of ours"),
    ],
)
def test_faults_of_commands_are_found(command, fault, check_command):
    with pytest.raises((UserError, AssertionError), match=re.escape(fault)):
        check_command(shlex.split(command))


@pytest.mark.parametrize(
    "command",
    [
        "detr-d2 train --config-flie detr-r50",
        "detr-d2 predict --input a.jpg",
        "detr-d2 benchmark inference --rouns 3",
        "detr-d2 benchmark convergence --config-file detr-r50 --metric AP90",
        "python converter.py --source_model a.pth",
        "python -m tests.robustness kill",
    ],
)
def test_faults_of_flags_are_found(command, check_command):
    with pytest.raises(SystemExit) as exit_:
        check_command(shlex.split(command))
    assert exit_.value.code == 2


def test_shell():
    script = 'A=1 B="x y" taskset -c 1 \\\n    detr-d2 plot  # why\n#SBATCH --nodes=2\ncode=$?\n[ 1 ] && make demo\n'
    assert list(split_commands(script)) == [
        ["taskset", "-c", "1", "detr-d2", "plot"],
        ["[", "1", "]"],
        ["make", "demo"],
    ]


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_keys_in_sentences(page):
    """They are not complete, as `detr-d2 convert --trust`: commands, flags and keys must exist."""
    cfg = get_cfg()
    add_detr_config(cfg)
    faults = []
    for code in re.findall(r"`([^`\n]+)`", prose(read(page))):
        words = code.split()
        if words[0] == "detr-d2" and len(words) > 1 and not words[1].startswith("-"):
            faults += [f"{code}: {x}" for x in unknown_flags(words[1], words[2:])]
        faults += [f"{code}: {x} is no config key" for x in words if is_key(cfg, x) and not has_key(cfg, x)]
    assert not faults, "\n".join(faults)


def unknown_flags(command: str, words: list[str]) -> list[str]:
    if command not in detr_d2.cli.main.COMMANDS:
        return [f"there is no command {command}"]
    main = detr_d2.cli.main.find_command(command)
    # Flags of another command may follow those of `launch`.
    known = main.make_parser()._option_string_actions if isinstance(main, Command) and command != "launch" else words
    return [f"there is no flag {x}" for x in words if x.startswith("--") and x not in known]


def is_key(cfg, word: str) -> bool:
    return bool(re.fullmatch(r"[A-Z]\w*(\.[A-Z]\w*)+", word)) and word.partition(".")[0] in cfg


def has_key(cfg, key: str) -> bool:
    for name in key.split("."):
        if name not in cfg:
            return False
        cfg = cfg[name]
    return True


@pytest.mark.parametrize("page", PAGES)
def test_python(page):
    """The code parses, and what it takes from this package exists."""
    faults = []
    for code in fenced(read(page), "python"):
        for node in ast.walk(ast.parse(code)):
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}:{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Attribute) and (name := ast.unparse(node)).startswith("detr_d2."):
                names = [name]
            faults += [name for name in names if name.startswith("detr_d2") and not is_importable(name)]
    assert not faults, faults


def is_importable(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md", "examples/README.md"])
def test_links(page):
    """Relative links and their anchors, as GitHub makes them, lead somewhere; tests of the site check the site's."""
    text = re.sub(r"`[^`\n]*`", "", prose(read(page)))
    faults = []
    for link in re.findall(r"\]\((?![a-z]+:)([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            faults.append(link)
    assert not faults, faults


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_anchors():
    text = "# A `b_c`: 3 × d\n\n```bash\n# no heading\n```\n## With-dash, etc.\n"
    assert anchors(text) == {"a-b_c-3--d", "with-dash-etc"}


@pytest.mark.slow
def test_site(tmp_path):
    """Build the site where torch can't be imported, and look at one page of each kind."""
    pytest.importorskip("mkdocs", reason="the site needs requirements/docs.txt")
    (tmp_path / "torch.py").write_text('raise SystemExit("building the site imports torch")')
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", "docs/site/mkdocs.yml"]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [*command, "--site-dir", tmp_path / "site"], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {
        str(file.relative_to(tmp_path / "site")): file.read_text(encoding="utf-8")
        for file in (tmp_path / "site").rglob("*.html")
    }

    index = pages["index.html"]
    assert {"OWN_DATA.html", "configs.html", "CONTRIBUTING.html"} <= {*re.findall(r'href="([^"]+)"', index)}
    assert 'src="images/demo.jpg"' in index
    assert 'href="../' not in index

    assert "SOLVER.BACKBONE_MULTIPLIER" in re.sub("<[^>]*>", "", pages["source/detr_d2/config/defaults.py.html"])
    assert {*re.findall(r'<h2 id="([^"]+)"', pages["commands.html"])} == {*detr_d2.cli.main.COMMANDS} - {"benchmark"}

    assert 'id="detr_d2.engine.Trainer"' in pages["api/engine.html"]
    # Roles in docstrings.
    link = r'<a [^>]*href="#detr_d2.config.find_config"[^>]*><code>find_config</code></a>'
    assert re.search(link, pages["api/config.html"])
    assert not [name for name, page in pages.items() if name.startswith("api/") and re.search(r":(class|func):", page)]
