"""A study's page and figures, from made-up numbers: whole, self-contained, honest about what is missing."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from proxykd.study.figures import as_png, as_svg, figures
from proxykd.study.study_page import page
from proxykd.study.table_files import as_csv, flat, sizes_markdown, table_markdown
from tests.made_up_study import NAMES, SIZES, WITH_PROXY, fidelity, made_up


def test_the_page_holds_everything_and_asks_nobody():
    report = made_up()
    html = page(report, figures(report))
    assert "a &lt;study&gt;" in html
    assert not re.search(r"<script|<link|<img|@import|url\((?!#)|src=", html)
    for row in report.table:
        assert row["title"] in html
        assert f"{row['held_out_nll']:.4f}" in html
        assert f"{row['true_kl']:.4f}" in html
    assert f"({report.table[1]['held_out_nll_difference']:+.4f}" in html
    assert html.count("<svg") == 7


def test_every_one_of_many_proxies_is_drawn():
    report = made_up()
    for number in range(25):
        own = {"arm": f"own{number}", "title": f"proxy number {number}"}
        report.table.append(report.table[0] | own)
        rounds = [fidelity(3), fidelity(2 - number / 100)]
        changed = {"name": own["arm"], "alignment": rounds}
        copied = [one.model_copy(update=changed) for one in report.arms if one.name == "proxy_kd"]
        report.arms.extend(copied)
    drawn = figures(report)
    for name in ("alignment", "curves", "proxy-and-student"):
        assert {f"proxy number {number}" for number in range(25)} <= set(
            re.findall(r"proxy number \d+", as_svg(drawn[name]))
        )


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        ({"sealed": False}, {"trust"}),
        ({"benchmarks": False}, {"accuracy"}),
        ({"proxies": ()}, {"alignment", "mass", "proxy-and-student", "trust"}),
        ({"seeds": (7,)}, set()),
    ],
)
def test_what_there_are_no_numbers_for_is_not_drawn(arguments, missing):
    report = made_up(**arguments)
    drawn = figures(report)
    everything = {"arms", "curves", "accuracy", "alignment", "mass", "proxy-and-student", "trust"}
    assert set(drawn) == everything - missing
    html = page(report, drawn)
    assert ("true KL</th>" in html) == arguments.get("sealed", True)
    assert "None" not in html
    assert ("<h2>Benchmarks</h2>" in html) == arguments.get("benchmarks", True)


def test_benchmarks_are_means_over_seeds_with_their_average_and_the_difference_to_the_same_kind_of_model():
    report = made_up()
    rows = {(row["arm"], row["model"]): row for row in report.benchmarks}
    assert rows.keys() == {(n, "student") for n in NAMES} | {(n, "proxy") for n in WITH_PROXY}
    asked = {(one.name, one.seed): one.benchmarks for one in report.arms}

    def mean(name, model, *tasks):
        values = [asked[name, seed][model][task].score for seed in (1, 2) for task in tasks]
        return sum(values) / len(values)

    row = rows["without_trust", "proxy"]
    assert row["mmlu"] == pytest.approx(mean("without_trust", "proxy", "mmlu"))
    assert row["average"] == pytest.approx(mean("without_trust", "proxy", "bbh", "mmlu"))
    full = mean("proxy_kd", "proxy", "bbh", "mmlu")
    assert row["average_difference"] == pytest.approx(row["average"] - full)
    assert "mmlu_difference" not in rows["proxy_kd", "student"]
    html = page(report, figures(report))
    assert f"{row['average']:.4f}" in html
    assert f"{rows['jsd', 'student']['bbh']:.4f}" in html


def test_figures_are_drawn_the_same_each_time_and_in_both_formats():
    report = made_up()
    for (name, figure), (_, again) in zip(figures(report).items(), figures(report).items(), strict=True):
        svg = as_svg(figure)
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert svg == as_svg(again), name
        assert as_png(figure).startswith(b"\x89PNG")


def test_the_table_as_markdown_has_a_row_an_arm_with_differences_in_brackets():
    report = made_up(sealed=False)
    head, rule, *rows = table_markdown(report).splitlines()
    assert head == "| arm | NLL a token | top-1 | device-hours | whole sequence | its source's NLL |"
    assert {line.count("|") for line in (head, rule, *rows)} == {7}
    assert "| 0.5000 ± 0.0000 (+0.0000 ± 0.0000) |" in rows[1]  # device-hours
    row = report.table[2]
    assert rows[2].startswith(f"| {row['title']} | {row['held_out_nll']:.4f} ± {row['held_out_nll_ci']:.4f} (")
    assert f"({row['held_out_nll_difference']:+.4f} ± {row['held_out_nll_difference_ci']:.4f})" in rows[2]
    assert rows[2].endswith("|  |")  # no proxy


def test_every_arm_and_seed_is_a_row_of_the_csv():
    report = made_up()
    lines = as_csv([flat(one) for one in report.arms]).decode().splitlines()
    assert lines[0].startswith(
        "name,seed,size,records,run,held_out_nll,nll_a_byte,true_kl,top1_agreement,device_hours,sequence_agreement,"
    )
    assert lines[0].endswith(",own_device_hours")
    assert len(lines) == 1 + len(report.arms)
    assert [(one.stage, one.device_hours, one.to_sft) for one in report.costs] == [("warmup", pytest.approx(0.1), 1.0)]


def test_arms_are_compared_with_the_reference_that_the_study_names():
    report = made_up(reference="black_box_kd", sizes=SIZES)
    rows = {row["arm"]: row for row in report.table}
    by_run = {(one.name, one.seed): one.student.held_out_nll for one in report.at_full_size}
    difference = sum(by_run["jsd", seed] - by_run["black_box_kd", seed] for seed in (1, 2)) / 2
    assert rows["jsd"]["held_out_nll_difference"] == pytest.approx(difference)
    assert "held_out_nll_difference" not in rows["black_box_kd"]
    html = page(report, figures(report))
    assert re.findall(r'class="reference"><td>([^<]+)', html) == ["black-box KD"] * 3  # with benchmarks and sizes
    assert "difference to <b>black-box KD</b>" in html
    alone = made_up(reference=None)
    assert alone.study.reference == "proxy_kd"


def test_sizes_are_shown_beside_and_never_among_the_full_ones():
    plain, report = made_up(reference="black_box_kd"), made_up(reference="black_box_kd", sizes=SIZES)
    assert (report.table, report.benchmarks, report.costs) == (plain.table, plain.benchmarks, plain.costs)
    drawn = figures(report)
    assert drawn.keys() - figures(plain).keys() == {"sizes"}
    for name, figure in figures(plain).items():
        assert as_svg(figure) == as_svg(drawn[name]), name
    rows = {(row["arm"], row["size"]): row for row in report.sizes}
    assert list(rows) == [(name, size) for name in SIZES["arms"] for size in (200, 400, None)]
    assert [row["records"] for row in report.sizes] == [200, 400, 800] * 2
    for name, lost in (("black_box_kd", 0.2), ("proxy_kd", 0.4)):
        full = next(row for row in report.table if row["arm"] == name)
        assert rows[name, None]["true_kl"] == full["true_kl"]
        assert rows[name, 200]["true_kl"] == pytest.approx(full["true_kl"] + lost)
        assert rows[name, 200]["true_kl_ci"] == pytest.approx(full["true_kl_ci"])
    step = rows["proxy_kd", 200]["held_out_nll_difference"] - rows["proxy_kd", None]["held_out_nll_difference"]
    assert step == pytest.approx(0.2)  # paired with the reference of the same size
    assert "true_kl_difference" not in rows["black_box_kd", 200]
    html = page(report, drawn)
    assert f"{rows['proxy_kd', 200]['true_kl']:.4f}" in html
    assert "None" not in html
    assert "proxy_kd-s1-n200" in html
    assert len(as_csv([flat(one) for one in report.arms]).decode().splitlines()) == 1 + 2 * (len(NAMES) + 2 * 2)


def test_savings_are_told_with_their_seeds():
    report = made_up(sealed=False, reference="black_box_kd", sizes=SIZES, seeds=(1, 2, 3))
    [saving] = report.savings
    assert (saving.arm, saving.measure) == ("proxy_kd", "held_out_nll")
    by_run = {(one.name, one.seed): one.student.held_out_nll for one in report.at_full_size}
    for one in saving.seeds:
        ahead = by_run["black_box_kd", one.seed] - by_run["proxy_kd", one.seed]
        halvings = min(max(ahead / 0.2, 0.0), 2.0)  # 0.2 nats each, to a quarter of the records at most
        assert one.saving == pytest.approx(1 - 2**-halvings)
        assert one.bound == ("at_most" if ahead < 0 else "at_least" if ahead > 0.4 else None)
    lines = sizes_markdown(report).splitlines()
    assert lines[0] == "| arm | training records | NLL a token | device-hours |"
    assert lines[2].startswith("| black-box KD | 200 | ")
    assert lines[9] == "| arm | by | fewer records for black-box KD's quality | by seed |"
    assert lines[11].startswith("| Proxy-KD | NLL a token | ")
    assert made_up(reference="proxy_kd", sizes={**SIZES, "arms": ["proxy_kd"]}).savings == []


def test_a_size_of_one_seed_is_drawn_without_intervals():
    report = made_up(seeds=(7,), sizes=SIZES)
    html = page(report, figures(report))
    assert "sizes" in figures(report)
    assert "None" not in html
