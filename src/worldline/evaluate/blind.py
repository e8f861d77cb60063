"""Two evaluations side by side for a person who must not know which is which: one offline page.

Both clips of an episode lie in one video, left and right, so that they cannot run apart; which model is left is drawn for
every episode from a seed, and the page does not hold it: it is drawn again when the answers come back (`answers.py`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from worldline.evaluate.finished import Finished, read_run
from worldline.evaluate.style import CSS
from worldline.evaluate.suites import FPS, Case
from worldline.schema import WorldlineError
from worldline.video import SMALL, write_browser

SCHEMA = "worldline.answers/1"
QUESTIONS = {"follows": "Which follows the keys better?", "looks": "Which looks better?"}
PAIRS, SECONDS = 24, 8  # at most, of a page, and of a clip
GAP = 4  # pixels between the two


def write_blind(a: Path, b: Path, out: Path, *, seed: int = 0, pairs: int = PAIRS) -> int:
    """Write the page; returns the number of pairs. Raises WorldlineError where the two are one model, of other sizes, or
    have no episode in common."""
    runs = read_run(a), read_run(b)
    codes = tuple(code_of(r) for r in runs)
    if codes[0] == codes[1]:
        raise WorldlineError(f"{a} and {b} are evaluations of the same weights; a blind comparison needs two models")
    if runs[0].size != runs[1].size:
        raise WorldlineError(f"{a} has frames {runs[0].size}, {b} {runs[1].size}; expected one size")
    cases = common(runs)
    if len(cases) > pairs:  # evenly taken, so that every suite is there
        cases = [cases[i] for i in np.linspace(0, len(cases) - 1, pairs).round().astype(int)]
    shown = []
    for number in np.random.default_rng([seed, len(cases)]).permutation(len(cases)):
        case = cases[number]
        clips = [r.frames(case)[: SECONDS * FPS + 1] for r in runs]
        left, right = clips if first_is_left(seed, case.id, codes) else clips[::-1]
        shown.append({"case": case.id, "video": _video(left, right), "keys": _keys(case, len(left) - 1)})
    facts = {"schema": SCHEMA, "seed": seed, "models": sorted(codes), "questions": list(QUESTIONS)}
    out.parent.mkdir(parents=True, exist_ok=True)
    tmp = out.with_suffix(out.suffix + ".tmp")
    tmp.write_text(_page(shown, facts), encoding="utf-8")
    tmp.replace(out)
    return len(shown)


def code_of(run: Finished) -> str:
    """What stands for a model on the page and in the answers: a digest of its weights, which tells nobody anything."""
    return hashlib.sha256(f"blind/{run.manifest['model']['weights']}".encode()).hexdigest()[:16]


def first_is_left(seed: int, case: str, codes: tuple[str, ...]) -> bool:
    """Whether the first of `codes` is shown on the left; the same for either order of the two."""
    lower, _ = sorted(codes)
    drawn = hashlib.sha256(f"{seed}/{case}/{'/'.join(sorted(codes))}".encode()).digest()[0] % 2 == 0
    return drawn == (codes[0] == lower)


def common(runs: tuple[Finished, Finished]) -> list[Case]:
    """Episodes both played, under the same script. Raises WorldlineError where there is none."""
    there = {(c.id, c.fingerprint()) for c in runs[1].cases}
    found = [c for c in runs[0].cases if (c.id, c.fingerprint()) in there]
    if not found:
        raise WorldlineError(
            f"{runs[0].plan.out} and {runs[1].plan.out} have no episode in common; evaluate both on one preset"
        )
    return found


def _video(left: np.ndarray, right: np.ndarray) -> str:
    """Both clips as one MP4, as a data address."""
    scale = max(1, -(-SMALL // left.shape[2]))
    pair = [clip.repeat(scale, axis=1).repeat(scale, axis=2) for clip in (left, right)]
    gap = np.full((*pair[0].shape[:2], GAP, 3), 128, np.uint8)
    with tempfile.TemporaryDirectory(prefix="worldline-blind-") as scratch:
        path = write_browser(np.concatenate([pair[0], gap, pair[1]], axis=2), Path(scratch) / "pair.mp4", FPS, crf=23)
        return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


def _keys(case: Case, frames: int) -> list[str]:
    """What is held in every frame, as a person reads it; mouse motion as arrows."""
    rows = []
    for t in range(min(frames, len(case.controls))):
        move, look = case.controls.move[t], case.controls.look[t]
        held = [
            name
            for value, name in (
                (move[2], "W"), (-move[2], "S"), (-move[0], "A"), (move[0], "D"), (-look[0], "←"), (look[0], "→"),
                (look[1], "↑"), (-look[1], "↓"),
            )
            if value > 0
        ]  # fmt: skip
        rows.append("".join(held))
    return rows


STYLE = """
main { max-width: 60rem; }
.pair video { width: 100%; display: block; border-radius: 10px; background: #808080; image-rendering: pixelated; }
.sides { display: grid; grid-template-columns: 1fr 1fr; text-align: center; font-weight: 600; margin: .5rem 0; }
.caps { display: flex; gap: .35rem; justify-content: center; margin: .8rem 0; min-height: 2rem; }
.caps span { width: 2rem; line-height: 2rem; text-align: center; border: 1px solid var(--line); border-radius: 6px;
  background: var(--panel); color: var(--soft); }
.caps span.on { background: var(--s1); color: var(--ground); border-color: var(--s1); }
fieldset { border: 1px solid var(--line); border-radius: 10px; background: var(--panel); margin: .8rem 0; padding: .6rem 1rem; }
legend { font-weight: 600; padding: 0 .4rem; } fieldset[data-active] { border-color: var(--s1); }
fieldset button { font: inherit; margin: .2rem .4rem .2rem 0; padding: .35rem .9rem; border-radius: 6px; cursor: pointer;
  border: 1px solid var(--line); background: var(--ground); color: var(--ink); }
fieldset button[aria-pressed=true] { background: var(--s1); color: var(--ground); border-color: var(--s1); }
nav { display: flex; gap: .6rem; align-items: center; margin: 1rem 0; } nav output { flex: 1; text-align: center; }
nav button { font: inherit; padding: .4rem 1rem; border-radius: 6px; border: 1px solid var(--line); cursor: pointer;
  background: var(--panel); color: var(--ink); } nav button:disabled { opacity: .4; cursor: default; }
kbd { border: 1px solid var(--line); border-radius: 4px; padding: 0 .3rem; font: inherit; font-size: .85em; }
"""

SCRIPT = """
const { pairs, facts, questions, fps } = JSON.parse(document.getElementById("data").textContent);
const answers = {}, store = "worldline-blind-" + facts.models.join("-") + "-" + facts.seed;
try { Object.assign(answers, JSON.parse(localStorage.getItem(store) || "{}")); } catch (e) { /* a page opened from a file */ }
const $ = id => document.getElementById(id), video = $("video"), names = Object.keys(questions);
let at = 0, asked = 0;
const caps = [..."WASD←→↑↓"].map(key => {
  const cap = document.createElement("span"); cap.textContent = key; $("caps").append(cap); return [key, cap];
});
const sets = names.map((name, i) => {
  const set = document.createElement("fieldset"); set.dataset.question = name;
  set.innerHTML = "<legend></legend>"; set.querySelector("legend").textContent = questions[name];
  for (const [choice, label] of [["left", "left (1)"], ["tie", "no difference (2)"], ["right", "right (3)"]]) {
    const b = document.createElement("button"); b.type = "button"; b.dataset.choice = choice; b.textContent = label;
    b.onclick = () => { asked = i; answer(choice); };
    set.append(b);
  }
  $("questions").append(set);
  return set;
});
function given() { return answers[pairs[at].case] || {}; }
function show(n) {
  at = Math.max(0, Math.min(pairs.length - 1, n));
  asked = Math.max(0, names.findIndex(name => !(name in given())));
  video.src = pairs[at].video; video.play().catch(() => {});
  draw();
}
function draw() {
  $("where").textContent = "pair " + (at + 1) + " of " + pairs.length + ", " + done() + " answered";
  sets.forEach((set, i) => {
    set.toggleAttribute("data-active", i === asked);
    const chosen = given()[set.dataset.question];
    for (const b of set.querySelectorAll("button")) b.setAttribute("aria-pressed", chosen === b.dataset.choice);
  });
  $("back").disabled = at === 0; $("next").disabled = at === pairs.length - 1; $("save").disabled = done() === 0;
}
function done() { return pairs.filter(p => names.every(name => name in (answers[p.case] || {}))).length; }
function answer(choice) {
  answers[pairs[at].case] = { ...given(), [names[asked]]: choice };
  try { localStorage.setItem(store, JSON.stringify(answers)); } catch (e) { /* kept in this page alone */ }
  const open = names.findIndex(name => !(name in given()));
  if (open >= 0) asked = open; else if (at < pairs.length - 1) { setTimeout(() => show(at + 1), 150); }
  draw();
}
function keys() {
  const held = pairs[at].keys[Math.min(pairs[at].keys.length - 1, Math.floor(video.currentTime * fps))] || "";
  for (const [key, cap] of caps) cap.classList.toggle("on", held.includes(key));
  requestAnimationFrame(keys);
}
function result() {
  return { ...facts, answered: new Date().toISOString(), rater: $("rater").value,
    answers: pairs.filter(p => p.case in answers).map(p => ({ case: p.case, ...answers[p.case] })) };
}
function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(result(), null, 2) + "\\n"], { type: "application/json" }));
  link.download = "answers.json"; link.click();
}
function turn(by) { asked = (asked + by + names.length) % names.length; draw(); }
document.addEventListener("keydown", e => {
  const typed = e.target.tagName === "INPUT" || (e.target.tagName === "BUTTON" && e.key === " ");
  if (typed || e.ctrlKey || e.metaKey || e.altKey) return;
  const act = { 1: () => answer("left"), 2: () => answer("tie"), 3: () => answer("right"), ArrowLeft: () => show(at - 1),
    ArrowRight: () => show(at + 1), " ": () => video.paused ? video.play() : video.pause(),
    r: () => { video.currentTime = 0; video.play(); }, ArrowUp: () => turn(-1), ArrowDown: () => turn(1) }[e.key];
  if (act) { e.preventDefault(); act(); }
});
$("back").onclick = () => show(at - 1); $("next").onclick = () => show(at + 1); $("save").onclick = save;
show(0); keys();
"""


def _page(pairs: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    data = json.dumps({"pairs": pairs, "facts": facts, "questions": QUESTIONS, "fps": FPS}).replace("</", "<\\/")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Which of two worlds</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<style>{CSS}{STYLE}</style></head>\n<body><main><h1>Which of two worlds</h1>"
        "<p class='soft'>Two worlds were given the same start and the same keys. Sides change from pair to pair.</p>"
        "<div class='pair'><video id='video' loop muted playsinline></video></div>"
        "<div class='sides'><span>left</span><span>right</span></div><div class='caps' id='caps'></div>"
        "<div id='questions'></div><nav><button id='back'>back</button><output id='where'></output>"
        "<button id='next'>next</button></nav>"
        "<p><label>Your name or initials, if you like: <input id='rater' maxlength='40'></label> "
        "<button id='save'>save answers.json</button></p>"
        f"<p class='soft'><small>Keys: <kbd>1</kbd> left, <kbd>2</kbd> no difference, <kbd>3</kbd> right, "
        "<kbd>↑</kbd> <kbd>↓</kbd> questions, <kbd>←</kbd> <kbd>→</kbd> pairs, <kbd>space</kbd> pause, <kbd>r</kbd> again. "
        "Nothing leaves this page but the file you save.</small></p>"
        f"</main><script type='application/json' id='data'>{data}</script><script>{SCRIPT}</script></body></html>\n"
    )
