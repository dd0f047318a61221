"""The benchmark ``convergence``: schedules, tables, and a run of two configs cut short."""

import pytest

from benchmarks.convergence import format_summary, format_table, main, read_variants, schedule
from detr_d2.engine import load_config
from detr_d2.utils.errors import UserError


def test_the_learning_rate_drops_after_the_same_share(repository, tmp_path):
    cfg = load_config(str(repository / "configs" / "detr_128_2_3_cpu.yaml"), [])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (1000, (800,))
    short = schedule(cfg, tmp_path, iterations=250, every=10)
    assert (short.SOLVER.MAX_ITER, short.SOLVER.STEPS, short.TEST.EVAL_PERIOD) == (250, (200,), 10)
    assert schedule(cfg, tmp_path, iterations=None, every=10).SOLVER.MAX_ITER == 1000


def test_a_table_has_gaps_where_a_run_was_not_evaluated():
    table = format_table({"a": [{100: 1.5, 200: 3.0}, {100: 1.0, 200: 3.0}], "b": [{200: 4.0}]}).splitlines()
    assert [cell.strip() for cell in table[2].strip("|").split("|")] == ["100", "1.2", ""]
    assert [cell.strip() for cell in table[3].strip("|").split("|")] == ["200", "3.0", "4.0"]


def test_the_summary_has_means_and_the_ap_of_each_seed():
    results = [{"iterations": 9, "seconds": 0.25, "metrics": {"AP": ap, "AP50": 2 * ap}} for ap in (10.0, 13.0)]
    (row,) = format_summary({"a": results}).splitlines()[2:]
    assert [x.strip() for x in row.strip("|").split("|")] == ["a", "9", "0.250", "11.5", "23.0", "", "10.0, 13.0"]


@pytest.fixture
def compare(tmp_path, repository, real_coco, monkeypatch):
    """Return a function that runs the command with a DETR and an SMCA cut down, and returns the exit code."""
    real_coco()
    monkeypatch.chdir(tmp_path)
    configs = [str(repository / "configs" / f"{name}_128_2_3_cpu.yaml") for name in ("detr", "smca")]
    sizes = ("INPUT.MIN_SIZE_TEST", "64", "MODEL.DETR.HIDDEN_DIM", "32", "SOLVER.IMS_PER_BATCH", "1")

    def run(*arguments) -> int:
        output = ("OUTPUT_DIR", str(tmp_path))
        return main(["--memorize", "1", "--configs", *configs, *arguments, *sizes, *output])

    return run


@pytest.mark.slow
def test_variants_in_equal_time(compare, tmp_path, monkeypatch):
    variants = tmp_path / "variants.yaml"
    variants.write_text("groups: {MODEL.DETR.QUERY_GROUPS: 3, MODEL.DETR.NUM_OBJECT_QUERIES: 8}\n")
    smca = ("--configs", "smca_128_2_3_cpu", "--variants", str(variants))
    small = ("--every", "1000", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.CROP.ENABLED", "False")
    arguments = (*smca, "--minutes", "0.01", "--seeds", "2", *small)
    assert compare(*arguments) == 0
    table = (tmp_path / "convergence.md").read_text()
    rows = [row.split("|") for row in table.splitlines()[2:]]
    assert [row[1].strip() for row in rows] == ["groups"]
    _, _, iterations, seconds, ap, *_, each, _ = rows[0]
    assert int(iterations) == pytest.approx(0.6 / float(seconds), rel=0.2)
    assert float(ap) == pytest.approx(sum(map(float, each.split(","))) / 2, abs=0.1)
    assert (tmp_path / "convergence.png").stat().st_size > 10_000

    monkeypatch.setattr("benchmarks.convergence.train", None)
    assert compare("--resume", *arguments) == 0
    assert (tmp_path / "convergence.md").read_text() == table


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a", "write one line per variant"), ("a: 3", "write one line per variant"), ("a: {", "can't be read")],
)
def test_bad_variants(tmp_path, text, message):
    file = tmp_path / "variants.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_variants(str(file))


def test_variants_of_the_docs_are_known_keys(repository):
    for options in read_variants(str(repository / "benchmarks" / "ablation.yaml")).values():
        load_config("smca_shapes_cpu", options)


@pytest.mark.slow
def test_two_configs_end_in_a_table_and_a_plot(compare, tmp_path, capsys):
    assert compare("--every", "2", "--iterations", "4", "2", "--metric", "AP50") == 0
    assert "detr_128_2_3_cpu in 4" in capsys.readouterr().out
    table = (tmp_path / "convergence.md").read_text().split("\n\n")[0].splitlines()
    assert [row.split("|")[1].strip() for row in table[2:]] == ["2", "4"]
    assert (tmp_path / "convergence.png").stat().st_size > 10_000


def test_numbers_that_do_not_go_with_the_configs(compare, capsys):
    assert compare("--iterations", "4", "2", "1") == 1
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: --iterations takes one number")
