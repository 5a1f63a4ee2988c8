import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from example_paper import VERDICTS, paper, tables
from markdown_it import MarkdownIt

from shared import pages, results
from shared.claims import Test, Verdicts, decide
from shared.errors import InputError
from shared.index_page import PaperEntry, render_index, write_index
from shared.plotting import new_figure, save_figure
from shared.report import (
    render_html,
    render_markdown,
    replace_between_markers,
    result_tables,
    verdict_table_markdown,
    write_report,
)

HERE = Path()
CAPTIONS = {
    "second": {"title": "Second <figure>", "caption": "With *emphasis* & <b>no tags</b>", "alt": 'A "line"'},
    "first": {"title": "First", "caption": "![leak](https://example.org/leak.png)", "alt": "Nothing"},
}
RECORDS = [
    {"stage": "papers.demo.train", "code": "abc", "wall_seconds": 50.0, "machine": {"system": "Linux", "cpus": 2}},
    {"stage": "papers.demo.evaluate", "code": "ccc", "wall_seconds": 1.5, "packages": {"torch": "2.13.0"}},
    {"stage": "papers.demo.train", "code": "abd", "wall_seconds": 30.0, "machine": {"system": "Linux", "cpus": 2}},
]


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    for name in ("first", "second"):
        figure, axes = new_figure(width=6)
        axes[0, 0].plot([0, 1])
        save_figure(figure, folder / f"{name}.png")
    return pages.captioned([folder / "first.png", folder / "second.png"], CAPTIONS)


@pytest.fixture(scope="module")
def measured():
    return tables(prompts=40)


def verdicts_of(measured, **changes):
    metrics, units = measured
    claims = decide(paper(**changes), metrics, units, replicates=400)
    scale = metrics["scale"].iloc[0]
    return Verdicts(paper="demo", scale=scale, replicates=400, seed=0, claims=claims)


@pytest.fixture(scope="module")
def verdicts(measured):
    return verdicts_of(measured)


class Page(HTMLParser):
    """Checks that tags are balanced and ids unique, and collects what a reader gets."""

    VOID = frozenset({"meta", "img", "input", "br", "rect", "path", "circle"})

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.tags, self.words = [], set(), [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if "id" in attributes:
            assert attributes["id"] not in self.ids
            self.ids.add(attributes["id"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert tag in self.VOID
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def assert_loads_its_own_figures_alone(page, html):
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "base")
        assert re.fullmatch(r"(\.\./)*(\w+/)*\w+\.png", attributes.get("src", "none.png"))
    assert "url(" not in html and "@import" not in html
    assert all(image["alt"] for image in page.all("img"))
    targets = {link["href"][1:] for link in page.all("a") if link["href"].startswith("#")}
    assert targets <= page.ids


# ---- report ---------------------------------------------------------------------------------------------------------


def test_html_shows_everything(measured, verdicts, figures):
    html = render_html(paper(), verdicts, measured[0], figures, RECORDS, folder=figures[0].path.parents[1])
    page = Page(html)
    assert_loads_its_own_figures_alone(page, html)
    assert html.startswith("<!doctype html>")
    assert page.all("script") == []
    text = page.text
    assert "Demonstrations <are> all you need: a study of A & B" in text
    for claim in verdicts.claims:
        assert claim.statement in text
        for result in claim.tests:
            assert pages.effect(result) in text
            assert pages.criterion(result.test) in text
    for piece in (
        "3 supported",
        "1 conditional",
        "1 contradicted",
        "1 inconclusive",
        "0.608 win rate against PPO (Table 1, TL;DR)",
        "direction only (Table 8)",
        "Guard: the reward model learns",
        "Not tested in the paper.",
        "1 min 22 s in 3 runs",
        "Linux, 2 CPUs",
        "torch 2.13.0",
        "0.924",
        "snakemake papers/demo --cores all --config scale=small",
    ):
        assert piece in text, piece
    assert "Nothing is decided" not in text


def test_a_verdict_is_not_told_by_colour_alone(measured, verdicts):
    page = Page(render_html(paper(), verdicts, measured[0], folder=HERE))
    badges = [attributes for attributes in page.all("span") if attributes.get("class", "").startswith("badge ")]
    shown = [attributes["class"].removeprefix("badge ") for attributes in badges]
    assert set(shown) >= set(VERDICTS.values())
    for verdict in set(VERDICTS.values()):
        assert f"{pages.SYMBOLS[verdict]} {verdict}" in page.text


def test_html_escapes_what_papers_and_captions_say(measured, figures):
    statement = "Reward <script>alert(1)</script> & *more*"
    claims = [
        paper().model_dump(mode="json")["claims"][3] | {"statement": statement, "note": "a < b, [x](javascript:1)"}
    ]
    verdicts = verdicts_of(measured, claims=claims)
    html = render_html(paper(claims=claims), verdicts, measured[0], figures, folder=figures[0].path.parents[1])
    assert "<script" not in html and "<b>no tags" not in html and 'href="javascript' not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; <em>more</em>" in html
    assert "leak.png" not in re.sub(r"!\[leak\]\S*", "", html.replace('<a href="https://example.org/leak.png">', ""))
    assert "With <em>emphasis</em> &amp; &lt;b&gt;no tags&lt;/b&gt;" in html
    assert_loads_its_own_figures_alone(Page(html), html)


def test_figures_are_linked_in_the_order_of_the_captions(measured, verdicts, figures):
    page = Page(render_html(paper(), verdicts, measured[0], figures, folder=figures[0].path.parents[1]))
    assert [image["alt"] for image in page.all("img")] == ['A "line"', "Nothing"]
    assert page.all("img")[0]["src"] == f"{figures[0].path.parent.name}/second.png"


def test_few_seeds_are_announced(tmp_path):
    few = tables(seeds=(0,), scale="smoke", prompts=4)
    verdicts = verdicts_of(few)
    html = Page(render_html(paper(), verdicts, few[0], folder=tmp_path)).text
    markdown = render_markdown(paper(), verdicts, few[0], folder=tmp_path)
    for text in (html, markdown):
        assert "Nothing is decided at this scale" in text
        assert "6 inconclusive" in text
    assert "1 seed < 3" in html


def test_verdicts_of_another_paper_are_refused(measured, verdicts):
    other = verdicts.model_copy(update={"paper": "other"})
    with pytest.raises(InputError, match="verdicts must be of paper 'demo', got those of 'other'"):
        render_html(paper(), other, measured[0], folder=HERE)


def test_markdown_shows_everything(measured, verdicts, figures):
    markdown = render_markdown(paper(), verdicts, measured[0], figures, RECORDS, folder=figures[0].path.parents[1])
    assert markdown.startswith("# Demonstrations &lt;are> all you need: a study of A & B: replication report\n")
    assert f"]({figures[0].path.parent.name}/second.png)" in markdown
    for claim in verdicts.claims:
        assert f"### {pages.SYMBOLS[claim.verdict]} {claim.verdict.capitalize()}: {claim.statement}\n" in markdown
        for result in claim.tests:
            assert f"| {pages.effect(result)} | {pages.criterion(result.test)} |" in markdown
    html = MarkdownIt("commonmark").enable("table").render(markdown)
    tables_shown = re.findall(r"<table>.*?</table>", html, re.DOTALL)
    assert len(tables_shown) == len(verdicts.claims) + 2 + 1 + 1  # claims, settings, stages, the paper's numbers
    for table in tables_shown:
        widths = {len(re.findall(r"<t[hd]\b", row)) for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)}
        assert len(widths) == 1
    assert not re.search(r"^\|", html, re.MULTILINE), "a row fell out of its table"
    assert "\n\n\n" not in markdown


def test_write_report_is_deterministic(tmp_path, measured, verdicts, figures):
    for attempt in ("a", "b"):
        folder = tmp_path / attempt
        write_report(
            folder / "REPORT.md", folder / "report.html", paper(), verdicts, measured[0], figures, iter(RECORDS)
        )
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab")
    assert first.keys() == {"REPORT.md", "report.html"}
    assert first["report.html"] == second["report.html"]
    assert first["REPORT.md"] == second["REPORT.md"]
    assert b"3 runs" in first["REPORT.md"] and b"3 runs" in first["report.html"]


# ---- tables ---------------------------------------------------------------------------------------------------------


def metrics_rows(**values_by_method):
    return results.metrics_table(
        {"paper": "demo", "scale": "small", "method": method, "setting": "A", "seed": seed, "metric": "gold"}
        | {"value": value}
        for method, values in values_by_method.items()
        for seed, value in enumerate(values)
    )


def test_result_tables_show_what_is_labelled_in_its_order():
    metrics = metrics_rows(theirs=[1.0, 2.0, 3.0], ours=[0.5], secret=[9.0])
    (table,) = result_tables(paper(), metrics)
    assert (table.setting, table.columns) == ("biased annotators", ("Gold reward (higher is better)",))
    assert table.rows == (("Our method", ("0.500",)), ("PPO with reverse KL", ("2.0 ± 1.0",)))


def test_result_tables_without_labels_show_all():
    bare = paper(metrics={}, methods={}, settings={})
    (table,) = result_tables(bare, metrics_rows(theirs=[1.0, 2.0], secret=[9.0, 9.0]))
    assert (table.setting, table.columns) == ("A", ("gold",))
    assert table.rows == (("secret", ("9.00 ± 0",)), ("theirs", ("1.50 ± 0.71",)))


def test_verdict_table(measured, verdicts):
    table = verdict_table_markdown(verdicts.claims)
    lines = table.splitlines()
    assert len(lines) == 2 + len(verdicts.claims)
    assert {line.count(" | ") for line in lines} == {3}
    assert lines[2].startswith("| The method reaches a higher gold reward than reverse-KL PPO | ◐ conditional | biased")
    assert lines[2].count("<br>") == 1
    cheap = pages.effect(verdicts.claims[3].tests[0])
    assert f"| ✗ contradicted | share of the step: {cheap} | 0.025 share of time (Table 15) |" in table
    piped = [verdicts.claims[0].model_copy(update={"statement": "a | b\nc <i>"})]
    assert verdict_table_markdown(piped).splitlines()[2].startswith("| a \\| b c &lt;i> | ")


def test_many_tests_are_counted_in_the_verdict_table(verdicts):
    claim = verdicts.claims[0]
    supported, other = (next(r for r in claim.tests if (r.verdict == "supported") == want) for want in (True, False))
    many = claim.model_copy(update={"tests": (supported,) * 3 + (other,) * 10})
    expected = f"| 13 tests: 10 {other.verdict}, 3 supported |"
    assert expected in verdict_table_markdown([many])
    assert verdict_table_markdown([claim.model_copy(update={"tests": (supported,) * 12})]).count("<br>") >= 11


def test_replace_between_markers():
    text = "before\n<!-- generated:verdicts -->\nold\n<!-- /generated:verdicts -->\nafter\n"
    replaced = replace_between_markers(text, "verdicts", "\nnew\\1\n")
    assert replaced == text.replace("old", "new\\1")
    assert replace_between_markers(replaced, "verdicts", "new\\1") == replaced
    for bad in ("", text + text, text.replace("/generated", "/made"), "<!-- /generated:a --><!-- generated:a -->"):
        with pytest.raises(InputError, match="expected one pair of markers <!-- generated:"):
            replace_between_markers(bad, "a" if "generated:a" in bad else "verdicts", "new")


# ---- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.1234, "0.123"),
        (-0.06, "−0.0600"),
        (12.345, "12.3"),
        (12345.6, "12346"),
        (1e-16, "1.00e−16"),
        (2.5e7, "2.50e+07"),
    ],
)
def test_numbers(value, text):
    assert pages.number(value) == text


def result_of(keys, estimate, low, high, **more):
    (claim,) = decide(
        paper(
            claims=[{"id": "c", "statement": "S", "tests": [{"name": "t", "setting": "A", "metric": "gold"} | keys]}]
        ),
        metrics_rows(ours=[1.0, 2.0, 3.0], theirs=[2.0, 2.0, 2.0]),
        replicates=10,
    )
    return claim.tests[0].model_copy(update={"estimate": estimate, "low": low, "high": high} | more)


DIFFERENCE = {"method": "ours", "baseline": "theirs", "direction": "greater"}
VALUE = {"method": "ours", "direction": "less", "threshold": 0.5}
RELATIVE = DIFFERENCE | {"effect": "relative", "direction": "less", "margin": 0.05}


@pytest.mark.parametrize(
    ("keys", "numbers", "text"),
    [
        (DIFFERENCE, (0.12345, 0.1, 0.15), "+0.123 [+0.100, +0.150]"),
        (DIFFERENCE, (-4.2, -8.0, 3.0), "−4.2 [−8.0, +3.0]"),
        (DIFFERENCE, (0.5, 0.5, 0.5), "+0.500 [+0.500, +0.500]"),
        (DIFFERENCE, (-0.5, None, None), "−0.500"),
        (VALUE, (0.12345, 0.1, 0.15), "0.123 [0.100, 0.150]"),
        (VALUE, (1e-12, 1e-13, 2e-12), "1.00e−12 [1.00e−13, 2.00e−12]"),
        (RELATIVE, (-0.0321, -0.05, 0.01), "−3.2 % [−5.0, +1.0]"),
    ],
)
def test_effects(keys, numbers, text):
    assert pages.effect(result_of(keys, *numbers)) == text


def test_evidence_is_rounded_like_the_interval():
    result = result_of(RELATIVE, -0.0321, -0.05, 0.01, per_seed=(0.011111, -0.0222), seed_low=-0.1, seed_high=0.3)
    assert pages.seed_by_seed(result) == "1.1; −2.2"
    assert pages.t_interval(result) == "[−10.0, 30.0]"
    assert pages.detectable(result.model_copy(update={"minimum_detectable_effect": 0.0213})) == "2.1"
    single = result.model_copy(update={"seed_low": None, "seed_high": None, "minimum_detectable_effect": None})
    assert (pages.t_interval(single), pages.detectable(single)) == ("–", "–")


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (DIFFERENCE, "> 0"),
        (DIFFERENCE | {"margin": -0.02, "direction": "less"}, "< −0.02"),
        (DIFFERENCE | {"margin": 0.05, "direction": "equivalent"}, "within ± 0.05"),
        (VALUE, "< 0.5"),
        (VALUE | {"threshold": 1.0, "margin": 1e-4, "direction": "equivalent"}, "within 1 ± 0.0001"),
        (RELATIVE, "< 5 %"),
    ],
)
def test_criteria(keys, text):
    test = Test.model_validate({"name": "t", "setting": "A", "metric": "gold"} | keys)
    assert pages.criterion(test) == text


def test_what_is_compared():
    keys = {"name": "t", "setting": "A", "metric": "gold", "direction": "greater"}
    plain = Test.model_validate(keys | {"method": "ours", "threshold": 0.5})
    assert pages.compared(plain, paper()) == "Gold reward (higher is better): Our method, biased annotators"
    moved = Test.model_validate(
        keys | {"method": "ours", "baseline": "other", "baseline_setting": "B", "baseline_metric": "kl"}
    )
    assert pages.compared(moved, paper()) == (
        "Gold reward (higher is better): Our method, biased annotators − other, unbiased annotators, "
        "the latter in KL to the reference, nats"
    )
    gain = {"method": "ours", "baseline": "theirs", "setting": "B"}
    gained = Test.model_validate(keys | {"method": "ours", "baseline": "theirs", "minus": gain})
    assert pages.compared(gained, paper()).endswith("; less Our method − PPO with reverse KL, unbiased annotators")


def test_durations():
    assert [pages.duration(seconds) for seconds in (8.26, 59.99, 60, 664, 3600, 7325)] == [
        "8.3 s",
        "60.0 s",
        "1 min 00 s",
        "11 min 04 s",
        "1 h 00 min",
        "2 h 02 min",
    ]


def test_provenance_sums_up_records():
    found = pages.provenance(RECORDS)
    assert [(stage.stage, stage.runs, stage.seconds, stage.code) for stage in found.stages] == [
        ("papers.demo.train", 2, 80.0, ("abc", "abd")),
        ("papers.demo.evaluate", 1, 1.5, ("ccc",)),
    ]
    assert (found.seconds, found.runs, found.machines) == (81.5, 3, ("Linux, 2 CPUs",))
    assert pages.provenance([]).seconds == 0


def test_captions(tmp_path, figures):
    path = tmp_path / "captions.yaml"
    path.write_text(yaml.safe_dump(CAPTIONS, sort_keys=False), encoding="utf-8")
    captions = pages.read_captions(path)
    assert list(captions) == ["second", "first"]
    paths = [figure.path for figure in figures]
    assert pages.captioned(paths, captions) == figures
    with pytest.raises(InputError, match=r"second.png: the figure has no caption"):
        pages.captioned(paths, {"first": captions["first"]})
    with pytest.raises(InputError, match="caption 'second' has no figure; there are: first"):
        pages.captioned(paths[1:], captions)
    path.write_text("first: {title: T, caption: C}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"captions.yaml: first.alt: missing key"):
        pages.read_captions(path)


# ---- page of all papers ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def entries(verdicts, figures):
    other = paper(id="other", title="Another paper")
    report = figures[0].path.parents[1] / "papers" / "demo" / "report.html"
    return [
        PaperEntry(paper(), verdicts, report, figures, RECORDS),
        PaperEntry(other, verdicts.model_copy(update={"paper": "other"}), report),
    ]


def test_index_lists_every_claim_of_every_paper(entries, verdicts):
    html = render_index(entries, folder=entries[0].report.parents[2] / "results")
    page = Page(html)
    assert_loads_its_own_figures_alone(page, html)
    rows = [attributes for attributes in page.all("li") if attributes.get("class") == "row"]
    assert [row["data-verdict"] for row in rows] == [claim.verdict for claim in verdicts.claims] * 2
    assert not any("hidden" in row for row in rows)
    assert "hidden" in page.all("form")[0], "without a script there must be no dead controls"
    links = {link["href"] for link in page.all("a")}
    assert "../papers/demo/report.html#claim-beats-kl" in links
    assert "../papers/demo/report.html#figure-first" in links
    for piece in (
        "6 supported",
        "0.608 win rate against PPO",
        "1 min 22 s",
        "Linux, 2 CPUs",
        "papers.demo.train abc, abd",
    ):
        assert piece in page.text, piece
    for claim in verdicts.claims:
        assert page.text.count(claim.statement) == 2
        assert all(pages.effect(result) in page.text for result in claim.tests)


def test_index_shows_few_tests_of_a_long_claim(measured, entries):
    test = {"setting": "A", "metric": "gold", "method": "ours", "direction": "greater", "threshold": 0.0}
    claims = [{"id": "c", "statement": "S", "tests": [test | {"name": f"test {number}"} for number in range(6)]}]
    entry = PaperEntry(paper(claims=claims), verdicts_of(measured, claims=claims), entries[0].report)
    text = Page(render_index([entry], folder=entries[0].report.parent)).text
    assert "and 2 more in the report" in text


def test_index_refuses_what_does_not_belong_together(entries, tmp_path):
    with pytest.raises(InputError, match="paper 'demo' is there more than once"):
        render_index([entries[0], entries[0]], folder=tmp_path)
    mixed = PaperEntry(entries[1].paper, entries[0].verdicts, entries[0].report)
    with pytest.raises(InputError, match="verdicts must be of paper 'other', got those of 'demo'"):
        render_index([mixed], folder=tmp_path)


def test_index_is_written_with_the_same_bytes(entries, tmp_path):
    write_index(tmp_path / "index.html", entries)
    first = (tmp_path / "index.html").read_bytes()
    write_index(tmp_path / "index.html", entries)
    assert (tmp_path / "index.html").read_bytes() == first
