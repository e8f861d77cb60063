// Puts the page together: what the server says goes to the parts, what the person does goes to the server.
import { Branches } from "./branches.js";
import { Connection } from "./connection.js";
import { Decoder, decodes } from "./decoder.js";
import { $, clock, download, swapIcon } from "./dom.js";
import { gamepad } from "./gamepad.js";
import { Hud } from "./hud.js";
import { Input } from "./input.js";
import { caps, listen } from "./keyboard.js";
import { keep, kept, setting } from "./memory.js";
import { complain, announce, toast } from "./notices.js";
import { Places } from "./places.js";
import { mouseLook } from "./pointer.js";
import { FLAG, readFrame } from "./protocol.js";
import { Scene } from "./scene.js";
import { dialogs, settings, streams } from "./settings.js";
import { sticks, touchMode } from "./sticks.js";
import { Timeline } from "./timeline.js";
import * as veil from "./veil.js";
import { View } from "./view.js";
import { Walks } from "./walks.js";

const H264 = "avc1.42C01F"; // what is asked for before the server has named its own
const LOCAL = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
const WARN_S = 60; // an idle or total limit is told of this long before

let world = null, live = false, failed = false, paused = kept("paused", false), recording = null, moved = kept("moved", false), canH264 = false, looking = false;

// -- the server --------------------------------------------------------------------------------------------------------

const connection = new Connection({
  opening: () => { if (!["lost", "queued"].includes(document.body.dataset.state)) veil.connecting(); },
  message: (message) => receivers[message.type]?.(message),
  binary(buffer) {
    let frame;
    try {
      frame = readFrame(buffer);
    } catch {
      return veil.ended({ code: 4400 });
    }
    if (!frame || frame.generation !== view.generation) return;
    frame.arrived = performance.timeOrigin + performance.now();
    decoder.take(frame);
  },
  lost(how) {
    left();
    veil.lost({ ...how, kept: Boolean(connection.resume), again: () => connection.open() });
  },
  ended(how) {
    left();
    keep("walked", null); // whoever comes back after this knows that it is a new walk
    veil.ended({ ...how, again: () => connection.open() });
  },
}, () => ({ codecs: preferred(), ...kept("begin", {}) }));

function left() {
  live = false;
  record(null);
  walks.ended();
  $("lease").hidden = true;
  $("hint").hidden = true;
  document.exitPointerLock?.();
}

function preferred() {
  const wish = setting("codec", "") || (LOCAL ? "jpeg" : "h264"); // over a network a quarter of the data counts for more
  const codecs = canH264 ? ["h264", "jpeg"] : ["jpeg"];
  return codecs.sort((a, b) => (b === wish) - (a === wish));
}

const receivers = {
  hello(hello) {
    world = hello;
    decoder.codec = hello.h264 ?? H264;
    $("world").textContent = hello.world;
    document.title = `${hello.world} · worldline`;
    document.body.dataset.world = hello.world;
    view.shape(hello.width, hello.height);
    const start = hello.starts.find(({ name }) => name === kept("begin", {}).start) ?? hello.starts[0];
    if (start) view.foretell(start.thumbnail);
    hud.world(hello.keys);
    timeline.world(hello);
    const can = new Set(hello.features);
    places.world(hello.starts, can.has("upload"));
    scene.world(hello.prompt_modes ?? [], hello.limits.prompt_chars);
    branches.world(can.has("slots") ? hello.limits.slots : 0);
    walks.world(hello.presets ?? []);
    streams(hello.codecs.filter((codec) => codec !== "h264" || canH264));
    const parts = { "s-scene": "prompt", "s-branches": "slots", "s-walks": "play", record: "record", "record-2": "record", timeline: "rewind", back: "rewind", step: "step", "replay-save": "save", "replay-open": "load" };
    for (const [id, feature] of Object.entries(parts)) $(id).hidden = !can.has(feature);
    $("s-files").hidden = !["record", "save", "load"].some((feature) => can.has(feature));
  },

  state(message) {
    if (message.state === "loading") veil.loading(message);
    if (message.state === "queued") {
      veil.queued(message);
      document.title = `(${message.position}) ${world.world} · worldline`;
    }
    if (message.state !== "live") return;
    live = true;
    document.title = `${world.world} · worldline`;
    input.restart();
    if (!message.resumed) {
      keep("slots", null);
      if (kept("walked", false)) toast("The server no longer has your walk. A new one begins at the same place.");
    }
    keep("walked", true);
    veil.loading({ message: "Opening it" });
  },

  scene(message) {
    failed = false;
    view.begin(message.generation);
    hud.restart();
    if (["start", "reset", "load"].includes(message.cause)) timeline.forget();
    timeline.stand(message.chunk, message.frame, true);
    keep("begin", { start: message.start, prompt: message.prompt, seed: message.seed });
    scene.show(message.prompt);
    places.mark(message.start);
    branches.hold(message.slots);
    $("new").title = `The same start; what is unseen comes out differently (N). Seed now: ${message.seed}`;
    record(message.recording ? recording ?? { frames: 0 } : null);
    offerUndo(message);
    if (!message.playing) walks.ended();
    if (message.paused && !paused) connection.ask("pause", { on: document.hidden }).catch(complain);
    mark(message.paused && paused);
  },

  played({ completed }) {
    walks.ended();
    if (completed) toast("The walk is done. The world is yours again.", { stays: 2500 });
  },

  lease({ left_s: left_s, reason }) {
    clearInterval(receivers.lease.timer);
    $("lease").hidden = left_s === null || (left_s > WARN_S && reason !== "waiting");
    if ($("lease").hidden) return;
    const why = { waiting: "Others are waiting", idle: "Are you still there?", total: "Time is nearly up" }[reason] ?? "";
    const end = performance.now() + 1000 * left_s;
    const tick = () => { $("lease").textContent = `${why} · ${clock(Math.max(0, (end - performance.now()) / 1000))}`; };
    tick();
    announce($("lease").textContent);
    receivers.lease.timer = setInterval(tick, 500);
  },

  recording({ on, file, reason }) {
    if (on) return;
    record(null);
    offer(file, `The recording stopped (${reason}).`);
  },

  error(error) {
    if (error.retry === "reset") {
      failed = true;
      veil.stopped(error.message, { back: timeline.chunk ? back : null, again: () => reset() });
    } else if (["fix", "later"].includes(error.retry)) complain(error); // others come with a close that tells of them
  },
};

/** A command; true where it was done, else the refusal is shown. */
async function ask(type, fields) {
  try {
    return (await connection.ask(type, fields)) ?? true;
  } catch (error) {
    complain(error);
    return null;
  }
}

// -- pictures ----------------------------------------------------------------------------------------------------------

const view = new View((frame, now) => {
  connection.say("ack", { generation: frame.generation, frame: frame.index });
  hud.shown(frame, now);
  timeline.stand(frame.chunk, frame.index);
  if (frame.flags & (FLAG.first | FLAG.still)) timeline.keep(frame.chunk);
  if (recording && frame.flags & FLAG.recording) $("rec-time").textContent = clock(++recording.frames / world.fps);
  const state = paused ? "paused" : "playing";
  if (failed) return; // a frame from before the failure
  if (document.body.dataset.state !== state) {
    veil.show(state);
    hint();
  }
});
const decoder = new Decoder((frame, picture) => view.offer(frame, picture), () => {
  canH264 = false;
  connection.ask("codec", { codec: "jpeg" }).catch(() => {});
});

// -- the person --------------------------------------------------------------------------------------------------------

const input = new Input((type, fields) => { if (live) connection.say(type, fields); }, () => {
  if (moved || !live) return;
  moved = true;
  keep("moved", true);
  hint();
});
const hud = new Hud(input, () => connection.rtt);
const timeline = new Timeline((chunk) => ask("rewind", { chunk }), (width) => view.copy(width));
const branches = new Branches({
  go: (slot) => ask("slot_go", { slot }),
  async save(slot) {
    await connection.ask("slot_save", { slot });
    toast(`Kept as branch ${slot}. Press ${slot} to come back here.`, { stays: 3500 });
  },
  now: () => ({ url: view.copy(120).toDataURL("image/jpeg", 0.8), time: timeline.time(timeline.chunk) }),
});
const places = new Places({ start: (fields) => reset(fields), upload: (blob) => connection.upload("image", blob), complain });
const scene = new Scene(async (text, mode) => {
  const done = await ask("prompt", { text, mode });
  if (done) announce("The scene has changed");
  return done?.text;
});
const walks = new Walks(async (actions) => {
  if (paused) await pause(false);
  const done = await ask("play", { actions });
  hint();
  return done;
});

const CODES = ["KeyW", "KeyA", "KeyS", "KeyD", "KeyQ", "KeyE", "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"];
const codes = () => (world ? Object.keys(world.codes) : CODES);
const codeOf = (name) => Object.entries(world?.codes ?? {}).find(([, key]) => key === name)?.[0];

async function reset(fields = {}) {
  if (paused) await pause(false);
  moved = true;
  return ask("reset", fields);
}

const newSeed = () => reset({ seed: Math.floor(Math.random() * 2 ** 31) });

async function pause(on) {
  paused = on;
  keep("paused", on);
  mark(on);
  if (on) input.unanswerable();
  await ask("pause", { on });
}

/** Show whether the walk stands still. */
function mark(on) {
  paused = on;
  keep("paused", on);
  $("pause").setAttribute("aria-pressed", String(on));
  $("pause").setAttribute("aria-label", on ? "Go on" : "Pause");
  $("pause").title = `${on ? "Go on" : "Pause"} (P or Space)`;
  swapIcon($("pause"), on ? "play" : "pause");
  $("step").disabled = !on;
  if (["playing", "paused"].includes(document.body.dataset.state)) veil.show(on ? "paused" : "playing");
  hint();
}

const step = () => { if (paused) ask("step", { chunks: 1 }); };
step.repeats = true;
const back = () => timeline.back(1);
back.repeats = true;

/** What to press next, on the picture: only while it is not plain. */
function hint() {
  const touch = document.body.dataset.touch === "on", keys = (text) => text.replace(/\[(.+?)\]/g, "<kbd>$1</kbd>");
  let text = "";
  if (paused) text = touch ? "Paused" : keys("Paused · [P] goes on · [.] one step");
  else if (looking) text = moved === "looked" ? "" : keys("Move the mouse to look · [Esc] lets go");
  else if (!moved) text = touch ? "Left stick walks, right stick turns" : keys("[W] [A] [S] [D] walk · [←] [→] turn · click to look with the mouse");
  $("hint").innerHTML = text;
  $("hint").hidden = !text || !live;
}

/** What was left can be had back: the server keeps the moment before the last leap in slot 0. */
function offerUndo({ cause, slots, frame }) {
  undo.notice?.remove();
  const again = undo.under_way;
  undo.under_way = false;
  if (again || !slots.includes(0)) return;
  const words = { rewind: `Back at ${clock(frame / world.fps)}.`, reset: "A new walk has begun.", slot: "Back at a branch.", load: "The walk goes on from its file." };
  if (words[cause]) undo.notice = toast(words[cause], { action: { label: "Undo", run: undo } });
}

function undo() {
  undo.under_way = true;
  return ask("slot_go", { slot: 0 });
}

function record(state) {
  recording = state;
  const on = Boolean(state);
  $("rec").hidden = !on;
  for (const id of ["record", "record-2"]) $(id).setAttribute("aria-pressed", String(on));
  $("record").setAttribute("aria-label", on ? "Stop recording" : "Record a video");
  swapIcon($("record"), on ? "stop" : "record");
  $("record-word").textContent = on ? "Stop" : "Record";
  if (on) $("rec-time").textContent = clock(state.frames / (world?.fps ?? 16));
}

async function toggleRecord() {
  if (!recording) {
    if (await ask("record", { on: true })) record({ frames: 0 });
    return;
  }
  const done = await ask("record", { on: false });
  record(null);
  if (done?.file) offer(done.file, "Your video is ready.");
}

/** Give a file of the server's to the person. */
function offer(file, text) {
  if (!file) return;
  download(file.url, file.name);
  toast(text, { link: { label: "Save again", url: file.url, name: file.name }, stays: 12_000 });
}

async function saveReplay() {
  const done = await ask("save");
  if (done?.file) offer(done.file, "Your walk is in this file. Anybody with this world can open it and go on.");
}

async function openReplay(file) {
  if (!file) return;
  try {
    const id = await connection.upload("session", file);
    const watch = $("watch").checked;
    await connection.ask("load", { file: id, watch });
    if (watch) toast("Watching the walk again. Any key takes over.");
  } catch (error) {
    complain(error);
  }
}

function fullScreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else $("column").requestFullscreen?.().catch(() => {});
}

// -- wires -------------------------------------------------------------------------------------------------------------

const commands = {
  p: () => pause(!paused), Space: () => pause(!paused), ".": step, Backspace: back, backspace: back, r: () => reset(), n: newSeed, u: undo, v: toggleRecord, f: fullScreen,
  "?": () => $("help").showModal(), "/": () => $("prompt").focus(),
};
for (const slot of [1, 2, 3, 4]) {
  commands[`Digit${slot}`] = () => branches.go(slot);
  commands[`Shift+Digit${slot}`] = () => branches.keep(slot).catch(complain);
}
listen(input, codes, commands);
caps(input, codeOf);
mouseLook(input, (on) => {
  looking = on;
  hint();
  if (on) setTimeout(() => { if (looking) { moved = "looked"; hint(); } }, 4000);
});
sticks(input);
gamepad(input, { 9: commands.p, 1: back, 3: commands.r }, (name) => toast(`${name}: the left stick walks, the right one turns.`));
const touch = touchMode();
settings({
  view, input, touch,
  codec: (codec) => { if (live) ask("codec", { codec: codec || preferred()[0] }); },
});
dialogs();

$("pause").onclick = commands.p;
$("step").onclick = step;
$("back").onclick = back;
$("record").onclick = $("record-2").onclick = toggleRecord;
$("full").onclick = fullScreen;
$("full").hidden = !document.fullscreenEnabled;
$("reset").onclick = () => reset();
$("new").onclick = newSeed;
$("leave").onclick = () => connection.say("leave");
$("replay-save").onclick = saveReplay;
$("replay-file").onchange = (event) => {
  openReplay(event.target.files[0]);
  event.target.value = "";
};

// A button pressed by pointer gives the keys back to the world; one pressed by keyboard keeps the focus where it is.
addEventListener("click", (event) => {
  if (event.detail && event.target.closest?.("button") && !document.querySelector("dialog[open]")) $("view").focus({ preventScroll: true });
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  const file = event.dataTransfer.files[0];
  if (file?.name.endsWith(".safetensors")) openReplay(file);
  else places.own(file);
});
document.addEventListener("visibilitychange", () => {
  if (live && !paused) connection.ask("pause", { on: document.hidden }).catch(() => {});
});

canH264 = await decodes(H264);
hint();
$("view").focus({ preventScroll: true });
connection.open();
