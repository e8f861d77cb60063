"""The blind page hides which model is where, and its answers, un-blinded, say what was preferred."""

from __future__ import annotations

import base64
import json
import re
from math import comb
from pathlib import Path

import numpy as np
import pytest

from tests.serve.browsing import PATIENCE_MS, browser  # noqa: F401
from worldline.evaluate import suites
from worldline.evaluate.answers import AnswersError, binomial_p, preferences
from worldline.evaluate.blind import SCHEMA, write_blind
from worldline.evaluate.finished import read_run
from worldline.evaluate.runner import clip_path
from worldline.evaluate.store import write_clip, write_json
from worldline.schema import WorldlineError

DARK, BRIGHT = 40, 210


@pytest.fixture
def runs(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """Two evaluations of ten short episodes: A shows dark clips, B bright ones."""
    monkeypatch.setitem(suites.PRESETS, "tiny", [suites.Entry("S2", "yaw", 10, frames=20)])
    for name, grey in (("a", DARK), ("b", BRIGHT)):
        out = tmp_path / name
        model = {"name": name, "weights": f"weights-{name}", "height": 16, "width": 24}
        write_json(
            out / "manifest.json", {"model": model, "preset": "tiny", "suites": [], "truth": str(tmp_path / "t")}
        )
        for case in suites.cases(suites.PRESETS["tiny"]):
            write_clip(clip_path(out, case), np.full((21, 16, 24, 3), grey, np.uint8))
    return tmp_path / "a", tmp_path / "b"


def data_of(page: Path) -> dict:
    return json.loads(re.search(r"id='data'>(.*?)</script>", page.read_text(), re.S)[1].replace("<\\/", "</"))


def sides(pair: dict, folder: Path) -> tuple[float, float]:
    """Mean grey of the left and of the right half of a pair's first frame."""
    import av

    path = folder / "pair.mp4"
    path.write_bytes(base64.b64decode(pair["video"].split(",", 1)[1]))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    half = frame.shape[1] // 2
    return float(frame[:, : half - 8].mean()), float(frame[:, half + 8 :].mean())


def answered(page: Path, folder: Path, choose) -> Path:
    """What a person would save who answers by choose(left grey, right grey)."""
    data = data_of(page)
    made = [{"case": p["case"], "follows": choose(*sides(p, folder)), "looks": "tie"} for p in data["pairs"]]
    write_json(folder / "answers.json", {**data["facts"], "rater": "", "answers": made})
    return folder / "answers.json"


def test_who_always_takes_the_bright_one_prefers_b(runs, tmp_path):
    a, b = runs
    page = tmp_path / "page.html"
    assert write_blind(a, b, page, seed=3) == 10
    lefts = [sides(p, tmp_path)[0] > 128 for p in data_of(page)["pairs"]]
    assert 0 < sum(lefts) < 10  # sides change
    file = answered(page, tmp_path, lambda left, right: "left" if left > right else "right")
    follows, looks = preferences(a, b, [file])
    assert (follows.a, follows.b, follows.share, follows.better) == (0, 10, 1.0, "B")
    assert follows.p == pytest.approx(2 / 2**10)
    assert (looks.ties, looks.share, looks.p, looks.better) == (10, 0.5, 1.0, "")
    swapped = preferences(b, a, [file])[0]
    assert (swapped.a, swapped.b, swapped.better) == (10, 0, "A")


def test_the_page_names_no_model_and_draws_again_with_another_seed(runs, tmp_path):
    a, b = runs
    write_blind(a, b, tmp_path / "0.html", seed=0)
    write_blind(b, a, tmp_path / "swapped.html", seed=0)
    write_blind(a, b, tmp_path / "1.html", seed=1)
    text = (tmp_path / "0.html").read_text()
    assert "weights-a" not in text
    assert str(tmp_path) not in text
    assert "http" not in text.replace("http-equiv", "")
    orders = [
        {p["case"]: sides(p, tmp_path)[0] > 128 for p in data_of(tmp_path / f"{n}.html")["pairs"]}
        for n in ("0", "swapped", "1")
    ]
    assert orders[0] == orders[1]  # which argument came first shows nowhere
    assert orders[0] != orders[2]
    assert data_of(tmp_path / "0.html")["pairs"][0]["keys"][0] in ("", "←", "→")


def test_several_people_and_a_coin(runs, tmp_path):
    a, b = runs
    page = tmp_path / "page.html"
    write_blind(a, b, page)
    rng = np.random.default_rng(0)
    files = []
    for person in range(3):
        file = answered(page, tmp_path, lambda left, right: "left" if rng.random() < 0.5 else "right")
        files.append(file.rename(tmp_path / f"answers-{person}.json"))
    found = preferences(a, b, files)[0]
    assert found.a + found.b == 30
    assert found.episodes == 10
    assert found.low < found.share < found.high
    assert found.better == ""


def test_wrong_input_says_what_is_wrong(runs, tmp_path, monkeypatch):
    a, b = runs
    with pytest.raises(WorldlineError, match="same weights"):
        write_blind(a, a, tmp_path / "p.html")
    write_blind(a, b, tmp_path / "p.html")
    file = answered(tmp_path / "p.html", tmp_path, lambda left, right: "tie")
    said = json.loads(file.read_text())
    for change, message in (
        ({"schema": "x"}, f"expected {SCHEMA}"),
        ({"models": ["0", "1"]}, "compares other models"),
        ({"answers": []}, "no question was answered"),
        ({"answers": [{"case": "S2-yaw-000", "follows": "middle"}]}, "expected left, tie or right"),
    ):
        write_json(file, {**said, **change})
        with pytest.raises(AnswersError, match=message):
            preferences(a, b, [file])
    with pytest.raises(WorldlineError, match=r"no manifest\.json"):
        read_run(tmp_path)
    other = json.loads((b / "manifest.json").read_text())
    monkeypatch.setitem(suites.PRESETS, "other", [suites.Entry("S8", "idle", 1, frames=20)])
    write_json(b / "manifest.json", {**other, "preset": "other"})
    (case,) = suites.cases(suites.PRESETS["other"])
    write_clip(clip_path(b, case), np.zeros((21, 16, 24, 3), np.uint8))
    with pytest.raises(WorldlineError, match="no episode in common"):
        write_blind(a, b, tmp_path / "p.html")


def test_the_binomial_is_exact():
    stats = pytest.importorskip("scipy.stats")
    for n in (0, 1, 7, 30):
        for wins in range(n + 1):
            expected = stats.binomtest(wins, n).pvalue if n else 1.0
            assert binomial_p(wins, n) == pytest.approx(expected, rel=1e-9)
    assert binomial_p(9, 10) == pytest.approx(2 * (comb(10, 9) + 1) / 2**10)


@pytest.mark.browser
def test_a_person_answers_with_the_keyboard(runs, tmp_path, browser):  # noqa: F811
    a, b = runs
    write_blind(a, b, tmp_path / "page.html")
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)
    errors = []
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_function("document.getElementById('video').readyState >= 2")
    cases = [p["case"] for p in data_of(tmp_path / "page.html")["pairs"]]
    said = []
    for i in range(10):
        page.wait_for_function(f"document.getElementById('where').textContent.startsWith('pair {i + 1} of 10')")
        for key in ("1", "2", "3")[i % 3], "2":
            page.keyboard.press(key)
        said.append({"case": cases[i], "follows": ("left", "tie", "right")[i % 3], "looks": "tie"})
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("document.getElementById('where').textContent === 'pair 9 of 10, 10 answered'")
    pressed = page.locator("button[aria-pressed=true]").all_text_contents()
    assert pressed == ["right (3)", "no difference (2)"]
    page.fill("#rater", "KM")
    with page.expect_download() as download:
        page.click("#save")
    file = tmp_path / "answers.json"
    download.value.save_as(file)
    saved = json.loads(file.read_text())
    assert (saved["answers"], saved["rater"], saved["seed"]) == (said, "KM", 0)
    assert [p.question for p in preferences(a, b, [file])] == ["follows", "looks"]
    assert errors == []
    page.close()
