"""Short rounds of the campaigns that `python -m tests.robustness` runs for longer."""

import mmap
import os
import resource
import threading

import pytest

from tests.robustness import campaign as campaigns
from tests.robustness.campaign import Campaign, cases, run
from tests.robustness.damages import damage
from tests.robustness.inputs import COMMANDS
from tests.robustness.kills import KillCampaign
from tests.robustness.long_runs import BOUNDS, RUNS, growth, predict

# In so short a run the allocator has not yet what it needs for images of all sizes.
SHORT, SHORT_BOUNDS = 40, BOUNDS._replace(memory=25)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    return Campaign(tmp_path_factory.mktemp("campaign"))


def test_every_command_is_tried():
    """A case of every command among the first of the long round."""
    assert {x.command for x in cases(250)} == set(COMMANDS)


@pytest.mark.parametrize("case", list(cases(40)), ids=str)
def test_a_bad_input_is_one_error(campaign, case):
    assert campaign.problems(case) == []


@pytest.mark.parametrize(
    "command",
    [
        "check",
        "predict",
        "convert",
        "import-voc",
        "import-yolo",
        "import-json",
        "import-via",
        "evaluate-results",
        "plot",
    ],
)
def test_valid_inputs_are_no_error(campaign, tmp_path, command):
    """The campaign would see no fault otherwise."""
    assert run(COMMANDS[command].words(campaign.valid | {"out": tmp_path / "out"}), tmp_path).code == 0


def test_damaged_files_are_explained(tmp_path):
    assert damage(tmp_path, 100) == []


@pytest.mark.parametrize("command", ["convert", "predict"])
def test_a_full_disk_is_one_error(campaign, tmp_path, command):
    """As a limit on the size of files. What was there stays."""
    words = COMMANDS[command].words(campaign.valid | {"out": tmp_path / "out"})
    force = {"convert": "--force", "predict": "--overwrite"}[command]
    assert run(words, tmp_path).code == 0
    before = {x: x.read_bytes() for x in tmp_path.rglob("*") if x.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        outcome = run([words[0], force, *words[1:]], tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert campaigns._problems(outcome) == []
    assert {x: x.read_bytes() for x in before} == before
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["convert", "draw shapes"])
def test_a_killed_command_is_repeated(tmp_path, task):
    kills = KillCampaign(tmp_path, task)
    assert [kills.problems() for _ in range(2)] == [[], []]


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_resources_do_not_grow(run, tmp_path, catalogs):
    assert growth(RUNS[run](tmp_path / run, SHORT), SHORT_BOUNDS) == []


def test_growth_is_found(tmp_path, catalogs):
    kept, end = [], threading.Event()

    def leak() -> None:
        shared = mmap.mmap(-1, 4 << 20)
        shared.write(bytes(len(shared)))
        kept.extend([shared, open(os.devnull)])  # noqa: SIM115
        kept.append(threading.Thread(target=end.wait))
        kept[-1].start()

    try:
        problems = growth(predict(tmp_path / "leaking", SHORT, leak), SHORT_BOUNDS)
    finally:
        end.set()
        for x in kept:
            x.join() if isinstance(x, threading.Thread) else x.close()
    assert [x.split()[0] for x in problems] == ["memory", "shared", "files", "threads"]
