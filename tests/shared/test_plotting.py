import os
import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
from example_paper import paper, tables

from shared.claims import decide
from shared.errors import InputError
from shared.plotting import (
    LINESTYLES,
    PALETTE,
    draw_figure,
    house_style,
    line_with_band,
    method_styles,
    new_figure,
    plot_claims,
    point_style,
    save_figure,
    seed_dots,
)


def test_the_style_ends_with_its_block():
    matplotlib.rcParams["font.size"] = 17.0
    before = dict(matplotlib.rcParams)
    with house_style():
        assert matplotlib.rcParams["font.size"] == 9
    assert dict(matplotlib.rcParams) == before
    with pytest.raises(RuntimeError), house_style():
        raise RuntimeError
    assert dict(matplotlib.rcParams) == before
    matplotlib.rcdefaults()


def test_a_users_own_settings_do_not_reach_a_figure(tmp_path):
    drawn = []
    for colour in ("white", "red"):
        matplotlib.rcParams["axes.facecolor"] = colour
        with house_style():
            figure, axes = new_figure()
            axes[0, 0].plot([0, 1])
            save_figure(figure, tmp_path / "figure.png")
        drawn.append((tmp_path / "figure.png").read_bytes())
    matplotlib.rcdefaults()
    assert drawn[0] == drawn[1]


def test_styles_follow_the_position_in_the_list():
    names = [f"m{number}" for number in range(len(PALETTE) * len(LINESTYLES))]
    styles = method_styles(names)
    assert list(styles) == names
    assert len({tuple(style.items()) for style in styles.values()}) == len(names)
    assert method_styles(names[:3]) == {name: styles[name] for name in names[:3]}
    assert len({styles[name]["color"] for name in names[: len(PALETTE)]}) == len(PALETTE)
    with pytest.raises(ValueError, match="methods must be distinct"):
        method_styles(["a", "a"])
    with pytest.raises(ValueError, match="methods must be at most 28, got 29"):
        method_styles([*names, "one more"])


DRAW = """
import sys
from pathlib import Path
import numpy as np
from shared.plotting import house_style, line_with_band, method_styles, new_figure, save_figure
with house_style():
    figure, axes = new_figure(columns=2)
    values = np.sin(np.arange(30.0)).reshape(3, 10)
    for name, style in method_styles(["ours", "theirs"]).items():
        line_with_band(axes[0, 0], range(10), values, label=name, **style)
    axes[0, 0].set(title="A title", xlabel="β, nats")
    axes[0, 0].legend()
    save_figure(figure, *map(Path, sys.argv[1:]))
"""


def test_figures_have_the_same_bytes_in_every_process(tmp_path):
    drawn = []
    for attempt in ("1", "2"):
        paths = [tmp_path / f"{attempt}.png", tmp_path / f"{attempt}.pdf"]
        environment = os.environ | {"PYTHONHASHSEED": attempt, "SOURCE_DATE_EPOCH": attempt * 9}
        subprocess.run([sys.executable, "-c", DRAW, *map(str, paths)], check=True, env=environment)
        drawn.append([path.read_bytes() for path in paths])
    assert drawn[0] == drawn[1]
    assert drawn[0][0].startswith(b"\x89PNG") and drawn[0][1].startswith(b"%PDF")
    assert b"Date" not in drawn[0][1] and b"matplotlib" not in drawn[0][0].lower()


def test_only_png_and_pdf_are_saved(tmp_path):
    figure, _ = new_figure()
    with pytest.raises(ValueError, match=r"paths must end in .png or .pdf, got 'figure.svg'"):
        save_figure(figure, tmp_path / "figure.png", tmp_path / "figure.svg")
    assert list(tmp_path.iterdir()) == []


def test_the_band_of_three_seeds_is_their_range():
    _, axes = new_figure()
    values = np.array([[0.0, 1.0], [2.0, 5.0], [4.0, 3.0]])
    line_with_band(axes[0, 0], [10, 20], values, color="black")
    assert axes[0, 0].lines[0].get_ydata().tolist() == [2.0, 3.0]
    corners = axes[0, 0].collections[0].get_paths()[0].vertices
    assert {tuple(corner) for corner in corners} >= {(10.0, 0.0), (10.0, 4.0), (20.0, 1.0), (20.0, 5.0)}


def test_one_seed_has_no_band():
    _, axes = new_figure()
    line_with_band(axes[0, 0], [1, 2], [[3.0, 4.0]])
    assert len(axes[0, 0].collections) == 0
    with pytest.raises(ValueError, match=r"values must be \(seeds, 2\), got \(2, 3\)"):
        line_with_band(axes[0, 0], [1, 2], np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"values must be \(seeds, 2\), got \(2,\)"):
        line_with_band(axes[0, 0], [1, 2], [3.0, 4.0])


@pytest.mark.parametrize("seeds", [(0, 1, 2), (0,)])
def test_claims_have_a_panel_each_and_every_estimate(seeds):
    claims = decide(paper(), *tables(seeds=seeds, prompts=5), replicates=100)
    figure = plot_claims(claims)
    assert [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes] == [
        f"{claim.id}: {claim.verdict}" for claim in claims
    ]
    for axes, claim in zip(figure.axes, claims, strict=True):
        drawn = {float(line.get_xdata()[0]) for line in axes.lines if len(line.get_xdata()) == 1}
        assert drawn >= {result.estimate for result in claim.tests}
    with pytest.raises(ValueError, match="claims must hold at least one test"):
        plot_claims([claim.model_copy(update={"tests": ()}) for claim in claims])


def test_a_figure_is_drawn_by_its_name(tmp_path):
    def titled(title):
        figure, axes = new_figure()
        axes[0, 0].set_title(title)
        assert not axes[0, 0].spines["top"].get_visible(), "not the house style"
        return figure

    draw_figure({"curve": titled}, "curve", "a title", tmp_path / "curve.png", tmp_path / "curve.pdf")
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG" and (tmp_path / "curve.pdf").exists()
    with pytest.raises(InputError, match="figure 'bars': there is none; there are: curve"):
        draw_figure({"curve": titled}, "bars", "", tmp_path / "bars.png")


def test_points_of_two_methods_with_one_colour_differ():
    styles = method_styles([str(number) for number in range(28)])
    looks = {tuple(sorted(point_style(style).items())) for style in styles.values()}
    assert len(looks) == 28 and {dict(look)["linestyle"] for look in looks} == {"none"}


def test_seeds_are_dots_in_the_row_of_their_method():
    _, axes = new_figure()
    table = pd.DataFrame({"new": [1.0, 3.0], "old": [5.0, np.nan]})
    seed_dots(axes[0, 0], table, method_styles(["old", "new"]), {"old": "Old", "new": "New"})
    seeds_new, mean_new, seeds_old, mean_old = axes[0, 0].lines
    assert seeds_new.get_xdata().tolist() == [1, 3] and seeds_new.get_ydata().tolist() == [0, 0]
    assert mean_new.get_xdata()[0] == 2 and mean_new.get_color() == method_styles(["old", "new"])["new"]["color"]
    assert seeds_old.get_xdata().tolist() == [5] and mean_old.get_ydata()[0] == 1
    assert [label.get_text() for label in axes[0, 0].get_yticklabels()] == ["New", "Old"]
