"""The report: whole, offline, and honest about what is missing."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from worldline.evaluate.films import contact_sheet
from worldline.evaluate.plots import Line, bar_plot, line_plot, ticks
from worldline.evaluate.report import RunInfo, StageReport, write_report
from worldline.schema import ShapeError

VOID = {"meta", "img", "line", "polyline"}


class Balanced(HTMLParser):
    """Every opened tag is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def stages():
    frames = np.random.default_rng(0).integers(0, 256, (17, 8, 12, 3), dtype=np.uint8)
    metrics = {
        "yaw_corr": 0.03, "yaw_gain": 0.02, "yaw_lag_frames": 4.0,
        "yaw_corr_codec": 0.57, "psnr_1s": 17.0, "psnr_1s_frozen": 16.2,
        "psnr_1s_wrong_actions": 15.1, "psnr_1s_simulator_other": 14.9, "psnr_1s_codec": 29.3, "skill_1s": 0.06,
    }  # fmt: skip
    steps, u = np.arange(0, 1000, 10), np.sin(np.arange(16.0))
    base = StageReport(name="base", method="pretraining", steps=1000, seconds=61, metrics=metrics)
    camera = StageReport(
        name="camera", method="finetune", init="base", steps=2000, seconds=4000, weights="abc123",
        losses={"loss": (steps, np.exp(-steps / 100))}, metrics={**metrics, "yaw_corr": 0.96, "yaw_gain": 0.9, "psnr_1s": 18.5},
        films=[("truth walk-000", frames), ("model", frames)], commands=[u], responses=[0.9 * u],
        curves={"model": np.linspace(30, 18, 17), "codec": np.full(17, 29.0)},
    )  # fmt: skip
    return [base, camera]


def page(tmp_path, *args) -> str:
    return write_report(tmp_path / "report" / "index.html", *args).read_text(encoding="utf-8")


def test_the_page_stands_alone_and_is_well_formed(tmp_path, stages):
    html = page(tmp_path, RunInfo(recipe="nano", facts={"commit": "f00"}), stages, {"first_frame_ms_ar_fewstep": 171.0})
    assert not re.search(r"(?:src|href)=[\"'](?!data:)|https?://|@import|<script", html)
    checker = Balanced()
    checker.feed(html)
    assert checker.open == []
    assert "prefers-color-scheme: dark" in html
    assert {p.name for p in (tmp_path / "report").iterdir()} == {"index.html"}


def test_the_figures_are_there_with_their_change_and_their_references(tmp_path, stages):
    html = page(tmp_path, RunInfo(recipe="nano", facts={"hardware": "2 cores"}), stages)
    for text in ("2 cores", "abc123", "0.96<small>+0.93</small>", "18.5<small>+1.5</small>", "1 h 07", "61 s"):
        assert text in html
    for reference in ("0.57", "29.3", "16.2", "14.9"):
        assert f"<td>{reference}</td>" in html
    assert "First frame</h2>" not in html


def test_a_lag_is_told_only_where_there_is_a_relation(tmp_path, stages):
    html = page(tmp_path, RunInfo(recipe="nano"), [*stages, StageReport(name="still", metrics={"yaw_frozen": 1.0})])
    rows = re.findall(r"<tr[^>]*><th>(base|camera|still)</th>(.*?)</tr>", html)
    assert [re.findall(r"<td>(.*?)</td>", cells)[6] for _, cells in rows] == ["none", "4", "frozen"]


def test_the_contact_sheet_in_the_page_is_the_frames(tmp_path, stages):
    html = page(tmp_path, RunInfo(recipe="nano"), stages)
    (data,) = re.findall(r"data:image/png;base64,([^\"]+)", html)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))
    first = stages[1].films[0][1][0]
    label = 39  # 13 pixels of label at scale 3
    assert np.array_equal(sheet[label : label + 24 : 3, 0:36:3, :3], first)


def test_latency_reads_against_the_bidirectional_model(tmp_path, stages):
    latency = {
        "first_frame_ms_bidirectional": 9000.0, "first_frame_ms_ar_fewstep": 180.0, "first_frame_speedup": 50.0,
        "first_frame_denoise_ms_bidirectional": 8000.0, "first_frame_denoise_ms_ar_fewstep": 100.0,
    }  # fmt: skip
    html = page(tmp_path, RunInfo(recipe="nano"), stages, latency)
    for text in ("9,000 ms", "50.0x", "80.0x", "50.0x sooner than bidirectional"):
        assert text in html


def test_words_from_outside_are_escaped_and_empty_runs_have_a_page(tmp_path):
    html = page(tmp_path, RunInfo(recipe="<b>x", about="a & b", facts={"<i>": "<u>"}), [StageReport(name="<s>")])
    assert not re.search(r"<b>x|<i>|<u>|<s>", html)
    assert "a &amp; b" in html
    assert "recipe" in page(tmp_path, RunInfo(recipe="recipe"), [])


def test_contact_sheet_takes_every_nth_frame_enlarged():
    frames = np.zeros((9, 4, 6, 3), np.uint8)
    frames[8] = 255
    sheet = contact_sheet([("truth", frames), ("model", frames[:5])], every=4, scale=2)
    assert sheet.size == (3 * (12 + 6) - 6, 2 * (26 + 8 + 6) - 6)
    pixels = np.asarray(sheet)
    assert pixels[26:34, 36:48, :3].min() == 255  # frame 8, the third of the first row
    assert pixels[66:74, 36:48, 3].max() == 0  # the shorter row ends: nothing is drawn
    with pytest.raises(ShapeError, match="all of one size"):
        contact_sheet([("a", frames), ("b", frames[:, :2])])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-2, 2), (14.2, 29.7), (3e-5, 8e-4), (5, 5), (0, 123456)])
def test_ticks_enclose_and_are_few(low, high):
    found = ticks(low, high)
    assert found[0] <= low + 1e-9
    assert found[-1] >= high - 1e-9
    assert 2 <= len(found) <= 8


def test_lines_break_where_there_is_no_value():
    y = np.array([1.0, 2.0, np.nan, 3.0, 4.0])
    assert line_plot([Line("a", np.arange(5), y)], "step", "loss").count("<polyline") == 1 + 1
    assert line_plot([Line("a", np.arange(2), np.full(2, np.nan))], "step", "loss") == ""


def test_bars_keep_their_ratio():
    assert re.findall(r"width:([\d.]+)%", bar_plot([("slow", 200, "s1"), ("fast", 50, "s2")], "ms")) == [
        "100.00",
        "25.00",
    ]
