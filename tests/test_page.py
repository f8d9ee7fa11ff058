"""The page: well-formed, self-contained, and complete."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from synthetic_sweep import CLIPS, FRAMES, SIDE, make_sweep

from sweeps.plan.graph import Cell, Sweep
from sweeps.report import command
from sweeps.report.frames import read_clips, strip_png

VOID = {"meta", "br", "img", "hr", "link", "input", "path", "use"}


class Reader(HTMLParser):
    """Collects text, links and images; complains about tags that do not match."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.links, self.images, self.cells = [], [], [], [], 0

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.links += [attrs[k] for k in ("href", "src", "xlink:href") if k in attrs]
        self.cells += tag == "td"
        if tag == "img":
            self.images.append(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("href", "src", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
            self.open.pop()

    def handle_data(self, data):
        self.text.append(data)


def _page(tmp_path, **settings):
    return _read(
        replace(make_sweep(tmp_path, collapses=False, **settings), title="A <made-up> & sweep"),
        tmp_path,
    )


def _read(sweep, tmp_path):
    command.write(sweep, tmp_path, tmp_path / "out")
    html = (tmp_path / "out" / "index.html").read_text()
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return html, reader


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return _page(folder, seeds=(0, 1), noise=0.1, floor=-40.0, skip={("causal_dmd", 1)})


def test_nothing_is_fetched_and_no_script_runs(shown):
    html, reader = shown
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in reader.links)
    assert "<script" not in html and "@import" not in html
    assert not re.findall(r"url\((?!#)", html)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))  # figures inlined side by side do not share ids
    for target in (link[1:] for link in reader.links if link.startswith("#")):
        assert target in ids


def test_every_cell_and_the_papers_block_are_there(shown):
    html, reader = shown
    text = " ".join(" ".join(reader.text).split())
    assert "A <made-up> & sweep" in text  # escaped
    for word in ("World Total", "VBench Total", "paper, Wan2.1-1.3B, A800; other metrics"):
        assert word in text
    for printed in ("83.35", "84.89", "11600", "5.412"):
        assert printed in text
    assert len(re.findall(rf"<td>2 × {CLIPS}</td>", html)) == 14 + 1
    for row in ("AR teacher: Stage 1, many steps", "ceiling: held-out real clips"):
        assert row in text
    assert "not run" in text and "ceiling: held-out real clips" in text
    assert text.count("not run") >= 7


def test_verdicts_have_badges(shown):
    html, _ = shown
    verdicts = ("holds", "does-not-hold", "not-run", "not-answerable-here")
    for badge in (f"badge {verdict}" for verdict in verdicts):
        assert badge in html
    assert "One seed" not in html


def test_strips_show_the_same_prompts_with_real_on_top(shown):
    _, reader = shown
    alts = [image["alt"] for image in reader.images]
    prompts = [f"a {i} moving right, slowly" for i in range(3)]
    assert alts[:3] == [f"real, {p}" for p in prompts]
    assert len(alts) == 3 * (3 * 6) - 3  # one cell is missing
    data = base64.b64decode(reader.images[0]["src"].partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (FRAMES * (SIDE + 1) - 1, SIDE)


def test_figures_are_inline_and_take_the_theme(shown):
    html, _ = shown
    assert html.count("<svg") == 3
    assert "currentColor" in html and "#123456" not in html
    assert "prefers-color-scheme: dark" in html
    for axis in ("frame index", "device-seconds", "higher is better", "lower is better"):
        assert axis in html


def test_a_sweep_of_which_nothing_is_run_still_makes_a_page(tmp_path):
    sweep = make_sweep(tmp_path / "elsewhere", clips=False)
    command.write(sweep, tmp_path / "none", tmp_path / "out")
    html = (tmp_path / "out" / "index.html").read_text()
    assert "<svg" not in html and "not run" in html and "One seed" in html


def test_a_broken_tar_costs_a_picture_not_the_page(tmp_path):
    sweep = make_sweep(tmp_path)
    cell = {"init": "causal_cd", "few_steps": 4, "seed": 0}
    score = next(c.runs["stage3"] for c in sweep.cells if c.labels == cell)
    shard = tmp_path / score.needs["samples"].name / "shards" / "000000.tar"
    shard.write_bytes(b"garbage" * 300)
    command.write(sweep, tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "index.html").read_text().count('alt="causal CD') == 2 * 3
    with pytest.raises(ValueError, match="000000.tar"):
        read_clips(shard.parent.parent, 1)


def test_a_sweep_over_one_parameter_has_its_figure_and_no_paper_and_no_claims(tmp_path):
    made = make_sweep(tmp_path)
    cells = [
        Cell({"init": "causal_cd", "decay": decay, "seed": 0}, {"stage3": cell.runs["stage3"]})
        for decay, cell in zip((0.9, 0.95, 0.99), made.cells, strict=False)
    ]
    html, reader = _read(Sweep("decay", "tiny", [0], cells), tmp_path)
    text = " ".join(reader.text)
    assert html.count("<svg") == 2 and "What decay changes" in text and "frame index" in text
    assert "dotted line" not in text, "there are no real clips here to draw one of"
    body = html.partition("</style>")[2]
    assert "paper" not in body and "statement" not in body
    assert len(reader.images) == 3 * (1 + 3)


def test_strips_pick_frames_evenly_and_shrink_tall_ones():
    video = np.arange(81, dtype=np.uint8)[:, None, None, None] * np.ones((1, 192, 64, 3), np.uint8)
    picture = Image.open(io.BytesIO(strip_png(video)))
    assert picture.height == 96 and picture.mode == "RGB"
    shades = [picture.getpixel((int((i + 0.5) * picture.width / 8), 48))[0] for i in range(8)]
    assert shades[0] == 0 and shades[-1] == 80
    assert np.allclose(np.diff(shades), 80 / 7, atol=1)
