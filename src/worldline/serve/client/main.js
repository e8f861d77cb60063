// Puts the page together: what the server says goes to the parts, what the person does goes to the server.
import { Branches } from "./branches.js";
import { Connection } from "./connection.js";
import { Decoder, decodes } from "./decoder.js";
import { $, clock, swapIcon } from "./dom.js";
import { Recorder, Walkfiles } from "./files.js";
import { gamepad } from "./gamepad.js";
import { Hud } from "./hud.js";
import { Hint } from "./hint.js";
import { Input } from "./input.js";
import { caps, listen } from "./keyboard.js";
import { lease, noLease } from "./lease.js";
import { keep, kept, setting } from "./memory.js";
import { complain, announce, toast } from "./notices.js";
import { Places } from "./places.js";
import { mouseLook } from "./pointer.js";
import { FLAG, readFrame } from "./protocol.js";
import { Rtc } from "./rtc.js";
import { Scene } from "./scene.js";
import { dialogs, settings, streams } from "./settings.js";
import { sticks, touchMode } from "./sticks.js";
import { Timeline } from "./timeline.js";
import * as veil from "./veil.js";
import { View } from "./view.js";
import { Walks } from "./walks.js";

const H264 = "avc1.42C01F"; // what is asked for before the server has named its own
const LOCAL = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);

let world = null, live = false, canH264 = false;
let failed = false; // the world stands until a scene begins
let transport = ""; // that is wished for: what the address says, else the setting
let uncarried = false; // a new connection, on which nothing was yet asked of WebRTC
let paused = kept("paused", false); // by the person; a hidden page pauses the server alone

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
    if (frame.codec === "track") rtc.take(frame);
    else decoder.take(frame);
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
  live = hint.live = false;
  rtc.stop();
  recorder.set(false);
  walks.ended();
  noLease();
  undo.notice?.remove();
  hint.show();
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
    recorder.world(hello.fps);
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
    live = hint.live = true;
    document.title = `${world.world} · worldline`;
    input.restart();
    if (!message.resumed) {
      keep("slots", null);
      if (kept("walked", false)) toast("The server no longer has your walk. A new one begins at the same place.");
    }
    keep("walked", true);
    veil.loading({ message: "Opening it" });
    uncarried = true;
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
    recorder.set(message.recording);
    offerUndo(message);
    if (!message.playing) walks.ended();
    if (message.paused && !paused) connection.ask("pause", { on: document.hidden }).catch(complain);
    mark(message.paused && paused);
    if (uncarried) carry(); // now there is a walk
  },

  played({ completed }) {
    walks.ended();
    if (completed) toast("The walk is done. The world is yours again.", { stays: 2500 });
  },

  lease,
  recording: (message) => recorder.stopped(message),

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
  say("ack", { generation: frame.generation, frame: frame.index });
  hud.shown(frame, now);
  timeline.stand(frame.chunk, frame.index);
  if (frame.flags & (FLAG.first | FLAG.still)) timeline.keep(frame.chunk);
  if (frame.flags & FLAG.recording) recorder.count();
  const state = paused ? "paused" : "playing";
  if (failed || !live) return; // a frame from before the failure, or from before the connection ended
  if (document.body.dataset.state !== state) {
    veil.show(state);
    hint.show();
  }
});
const decoder = new Decoder((frame, picture) => view.offer(frame, picture), () => {
  canH264 = false;
  connection.ask("codec", { codec: "jpeg" }).catch(() => {});
});

/** Over the channel where there is one. */
function say(type, fields) {
  if (!rtc.say(type, fields)) connection.say(type, fields);
}

const rtc = new Rtc((frame, picture) => view.offer(frame, picture), (reason) => {
  told(reason);
  connection.ask("codec", { codec: preferred()[0] }).catch(() => {});
});

/** Carry pictures and inputs as is wished, where both ends can; else say why not. */
async function carry() {
  if (!live) return;
  uncarried = false;
  if (transport !== "webrtc") {
    const was = rtc.on;
    rtc.stop();
    $("transport-note").textContent = "";
    if (was) await ask("codec", { codec: preferred()[0] });
    return;
  }
  if (!world.features.includes("webrtc")) return told("this server does not offer it (worldline serve --webrtc)");
  try {
    await rtc.start((type, fields) => connection.ask(type, fields));
    $("transport-note").textContent = "WebRTC is in use.";
  } catch (error) {
    if (live && transport === "webrtc") told(error.message);
  }
}

function told(reason) {
  $("transport-note").textContent = `WebRTC is not in use: ${reason}.`;
  toast(`Pictures come over the WebSocket. WebRTC is not in use: ${reason}.`, { bad: true, stays: 9000 });
}

// -- the person --------------------------------------------------------------------------------------------------------

const hint = new Hint();
const input = new Input((type, fields) => { if (live) say(type, fields); }, () => hint.moved());
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
const recorder = new Recorder(ask);
const files = new Walkfiles(ask, (blob) => connection.upload("session", blob));
const walks = new Walks(async (actions) => {
  if (paused) await pause(false);
  return ask("play", { actions });
});

const CODES = ["KeyW", "KeyA", "KeyS", "KeyD", "KeyQ", "KeyE", "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"];
const codes = () => (world ? Object.keys(world.codes) : CODES);
const codeOf = (name) => Object.entries(world?.codes ?? {}).find(([, key]) => key === name)?.[0];

async function reset(fields = {}) {
  if (paused) await pause(false);
  return ask("reset", fields);
}

const newSeed = () => reset({ seed: Math.floor(Math.random() * 2 ** 31) });

async function pause(on) {
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
  hint.paused = on;
  hint.show();
}

const step = () => { if (paused) ask("step", { chunks: 1 }); };
step.repeats = true;
const back = () => timeline.back(1);
back.repeats = true;

/** What was left can be had back: the server keeps the moment before the last leap in slot 0. */
function offerUndo({ cause, slots, frame }) {
  undo.notice?.remove();
  undo.possible = slots.includes(0);
  const again = undo.under_way;
  undo.under_way = false;
  if (again || !undo.possible) return;
  const words = { rewind: `Back at ${clock(frame / world.fps)}.`, reset: "A new walk has begun.", slot: "Back at a branch.", load: "The walk goes on from its file." };
  if (words[cause]) undo.notice = toast(words[cause], { action: { label: "Undo", run: undo } });
}

function undo() {
  if (!undo.possible) return;
  undo.under_way = true;
  ask("slot_go", { slot: 0 });
}

function fullScreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else $("column").requestFullscreen?.().catch(() => {});
}

// -- wires -------------------------------------------------------------------------------------------------------------

const steering = {
  p: () => pause(!paused), Space: () => pause(!paused), ".": step, backspace: back, u: undo, r: () => reset(), n: newSeed, v: () => recorder.toggle(),
};
for (const slot of [1, 2, 3, 4]) {
  steering[`Digit${slot}`] = () => branches.go(slot);
  steering[`Shift+Digit${slot}`] = () => branches.keep(slot).catch(complain);
}
const commands = { f: fullScreen, "?": () => $("help").showModal(), "/": () => $("prompt").focus() };
for (const [key, run] of Object.entries(steering)) {
  commands[key] = Object.assign(() => { if (live) run(); }, { repeats: run.repeats }); // before the walk is on there is nothing to steer
}
listen(input, codes, commands);
caps(input, codeOf);
mouseLook(input, (on) => hint.looking(on));
sticks(input);
gamepad(input, { 9: commands.p, 1: commands.backspace, 3: commands.r }, (name) => toast(`${name}: the left stick walks, the right one turns.`));
const touch = touchMode();
settings({
  view, input, touch,
  codec: (codec) => { if (live && !rtc.on) ask("codec", { codec: codec || preferred()[0] }); },
  transport(wish) {
    transport = (transport === "" && new URLSearchParams(location.search).get("transport")) || wish;
    $("set-transport").value = transport === "webrtc" ? "webrtc" : "websocket";
    carry();
  },
});
dialogs();

$("pause").onclick = commands.p;
$("step").onclick = step;
$("back").onclick = back;
$("full").onclick = fullScreen;
$("full").hidden = !document.fullscreenEnabled;
$("reset").onclick = () => reset();
$("new").onclick = newSeed;
$("leave").onclick = () => connection.say("leave");

// A button pressed by pointer gives the keys back to the world; one pressed by keyboard keeps the focus where it is.
addEventListener("click", (event) => {
  if (event.detail && event.target.closest?.("button") && !document.querySelector("dialog[open]")) $("view").focus({ preventScroll: true });
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  const file = event.dataTransfer.files[0];
  if (file?.name.endsWith(".safetensors")) files.open(file);
  else places.own(file);
});
document.addEventListener("visibilitychange", () => {
  if (live && !paused) connection.ask("pause", { on: document.hidden }).catch(() => {});
});

canH264 = await decodes(H264);
hint.show();
$("view").focus({ preventScroll: true });
connection.open();
