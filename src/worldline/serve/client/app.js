// The page: keys and mouse out as JSON, frames in as a 32-byte header and a JPEG (serve/protocol.py).
const HEADER_BYTES = 32, VERSION = 1, RETRY_MS = [500, 1000, 2000, 4000];
const CODES = ["KeyW", "KeyA", "KeyS", "KeyD", "KeyQ", "KeyE", "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"];
const $ = (id) => document.getElementById(id);
const canvas = $("view"), paint = canvas.getContext("2d", { alpha: false });

let socket = null, tries = 0, generation = 0, fatal = false;
let seq = 0, mouse = 0, dirty = false, paused = false, start = null;
const held = new Set(), sentAt = new Map(), shown = [], delays = [];
let names = [], size = null;

// -- connection ------------------------------------------------------------------------------------------------------

function connect() {
  if (tries === 0) setState("connecting", "Connecting", "Opening the world");
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  socket = new WebSocket(`${scheme}://${location.host}/ws`);
  socket.binaryType = "arraybuffer";
  let busy = false;
  socket.onmessage = (event) => {
    if (typeof event.data !== "string") return receiveFrame(event.data);
    const message = JSON.parse(event.data);
    if (message.type === "busy") { busy = true; setState("busy", "Busy", `${message.message} Trying again.`); }
    else receive(message);
  };
  socket.onclose = (event) => {
    generation = 0;
    held.clear();
    if (event.code === 1008 || fatal) return setState("error", "Stopped", event.reason || $("veil-text").textContent);
    if (!busy) setState("lost", "Connection lost", "The connection is lost. Trying again.");
    setTimeout(connect, busy ? 2000 : RETRY_MS[Math.min(tries++, RETRY_MS.length - 1)]);
  };
}

function send(message) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function receive(message) {
  switch (message.type) {
    case "hello":
      tries = 0;
      seq = 0;
      names = message.keys;
      size = [message.width, message.height];
      $("world").textContent = message.world;
      setState("loading", "Loading", "Opening the world");
      gallery(message.starts);
      if (document.hidden || paused) send({ type: "pause", on: true });
      break;
    case "reset":
      generation = message.generation;
      sentAt.clear();
      if (document.activeElement !== $("prompt")) $("prompt").value = message.prompt;
      break;
    case "prompt":
      break;
    case "error":
      if (message.code === "internal") fatal = true;
      if (message.code === "request") { // the walk goes on
        $("note").textContent = message.message;
        setTimeout(() => { $("note").textContent = ""; }, 8000);
      } else if (message.code !== "message") setState("error", "Stopped", `${message.message}\nPress R to start over.`);
      break;
  }
}

function setState(state, word, veil) {
  $("state").dataset.state = state;
  $("state-text").textContent = word;
  $("veil").hidden = !veil;
  if (veil) $("veil-text").textContent = veil;
}

// -- pictures --------------------------------------------------------------------------------------------------------

async function receiveFrame(buffer) {
  const head = new DataView(buffer);
  if (head.getUint8(0) !== VERSION) return setState("error", "Stopped", "This page and the server differ; reload the page.");
  const frame = {
    keys: head.getUint16(2, true), generation: head.getUint32(4, true), index: head.getUint32(8, true),
    seq: head.getUint32(16, true), compute: head.getFloat32(28, true),
  };
  if (frame.generation !== generation) return; // of a world that was left
  const picture = await createImageBitmap(new Blob([new Uint8Array(buffer, HEADER_BYTES)], { type: "image/jpeg" }));
  requestAnimationFrame((now) => show(frame, picture, now));
  // An animation frame never comes to a hidden page; it has sent its pause by then.
}

function show(frame, picture, now) {
  if (frame.generation === generation) {
    paint.imageSmoothingEnabled = true;
    paint.imageSmoothingQuality = "high";
    paint.drawImage(picture, 0, 0, canvas.width, canvas.height);
    if ($("state").dataset.state !== "paused") setState("playing", "Live");
    overlay(frame.keys);
    measure(frame, now);
    send({ type: "ack", generation: frame.generation, frame: frame.index });
  }
  picture.close();
}

function overlay(bits) {
  names.forEach((name, i) => document.querySelector(`#keys [data-key="${name}"]`)?.classList.toggle("on", Boolean(bits >> i & 1)));
}

function measure(frame, now) {
  for (const [sent, at] of sentAt) {
    if (sent > frame.seq) break;
    sentAt.delete(sent);
    delays.push(now - at);
    if (delays.length > 20) delays.shift();
  }
  shown.push(now);
  while (now - shown[0] > 2000) shown.shift();
  if (shown.length > 4) $("fps").textContent = (1000 * (shown.length - 1) / (now - shown[0])).toFixed(1);
  if (delays.length) $("a2p").textContent = Math.round([...delays].sort((a, b) => a - b)[delays.length >> 1]);
  if (frame.compute) $("chunk").textContent = Math.round(frame.compute);
  $("frame").textContent = frame.index;
}

function fitCanvas() {
  const box = canvas.getBoundingClientRect(), scale = Math.min(window.devicePixelRatio || 1, 2);
  const width = Math.round(box.width * scale), height = Math.round(box.width * scale * canvas.height / canvas.width);
  if (!width || Math.abs(width - canvas.width) < 2) return;
  const old = document.createElement("canvas");
  old.width = canvas.width; old.height = canvas.height;
  old.getContext("2d").drawImage(canvas, 0, 0);
  canvas.width = width; canvas.height = height;
  paint.drawImage(old, 0, 0, width, height);
}

// -- input -----------------------------------------------------------------------------------------------------------

function sendInput() {
  dirty = false;
  seq += 1;
  sentAt.set(seq, performance.now());
  if (sentAt.size > 200) sentAt.delete(sentAt.keys().next().value);
  send({ type: "input", seq, t_client: performance.now(), keys: [...held], mouse_dx: mouse });
  mouse = 0;
}

const typing = (event) => event.target instanceof HTMLInputElement;

addEventListener("keydown", (event) => {
  if (typing(event) || event.ctrlKey || event.metaKey || event.altKey) return;
  if (CODES.includes(event.code)) {
    event.preventDefault();
    if (!held.has(event.code)) { held.add(event.code); sendInput(); }
  } else if (!event.repeat && event.code === "KeyR") reset();
  else if (!event.repeat && event.code === "KeyN") reset({ seed: newSeed() });
  else if (!event.repeat && event.code === "KeyP") pause(!paused);
});
addEventListener("keyup", (event) => { if (held.delete(event.code)) sendInput(); });
addEventListener("blur", () => { if (held.size) { held.clear(); sendInput(); } });

// The keys on the picture work under a finger, too.
const TOUCH = { w: "KeyW", a: "KeyA", s: "KeyS", d: "KeyD", left: "ArrowLeft", right: "ArrowRight" };
for (const key of document.querySelectorAll("#keys kbd")) {
  const code = TOUCH[key.dataset.key];
  key.addEventListener("pointerdown", (event) => { event.preventDefault(); key.setPointerCapture(event.pointerId); held.add(code); sendInput(); });
  for (const end of ["pointerup", "pointercancel"]) key.addEventListener(end, () => { if (held.delete(code)) sendInput(); });
}

canvas.addEventListener("click", () => { canvas.focus(); canvas.requestPointerLock?.()?.catch?.(() => {}); });
addEventListener("mousemove", (event) => {
  if (document.pointerLockElement !== canvas) return;
  mouse += event.movementX;
  if (!dirty) { dirty = true; requestAnimationFrame(sendInput); } // one message a screen refresh
});

function pause(on) {
  paused = on;
  send({ type: "pause", on });
  if (on) setState("paused", "Paused", "Paused. Press P to go on.");
  else setState("loading", "Live");
}
document.addEventListener("visibilitychange", () => { if (!paused) send({ type: "pause", on: document.hidden }); });

// -- start, scene, seed ----------------------------------------------------------------------------------------------

const newSeed = () => Math.floor(Math.random() * 2 ** 31);

function reset(how = {}) {
  generation = 0; // whatever is still on its way belongs to the old world
  if (paused) pause(false);
  send({ type: "reset", ...how });
}

async function gallery(starts) {
  const box = $("gallery");
  if (start !== null || !starts.length) return;
  start = starts[0];
  for (const place of await (await fetch("/api/starts")).json()) {
    const button = document.createElement("button"), image = document.createElement("img");
    button.type = "button";
    button.title = place.caption;
    button.setAttribute("aria-label", `Start from: ${place.caption || place.name}`);
    button.setAttribute("aria-pressed", String(place.name === start));
    image.src = place.thumbnail;
    image.alt = "";
    button.append(image);
    button.onclick = () => {
      start = place.name;
      press(button);
      reset({ start });
      canvas.focus();
    };
    box.insertBefore(button, $("own"));
  }
}

function press(button) {
  for (const other of $("gallery").querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
}

// A picture of the player's own, cropped to the world's shape here: the server takes no other size.
async function startFrom(file) {
  if (!file?.type.startsWith("image/") || !size) return;
  const picture = await createImageBitmap(file), [width, height] = size;
  const scale = Math.max(width / picture.width, height / picture.height);
  const small = document.createElement("canvas");
  small.width = width; small.height = height;
  const brush = small.getContext("2d");
  brush.imageSmoothingQuality = "high";
  const w = picture.width * scale, h = picture.height * scale;
  brush.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h);
  press(null);
  reset({ image: small.toDataURL("image/jpeg", 0.95).split(",")[1], prompt: $("prompt").value });
  canvas.focus();
}
$("file").addEventListener("change", (event) => { startFrom(event.target.files[0]); event.target.value = ""; });
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => { event.preventDefault(); startFrom(event.dataTransfer.files[0]); });

$("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  send({ type: "prompt", text: $("prompt").value });
  canvas.focus();
});
$("reset").onclick = () => { reset(); canvas.focus(); };
$("new").onclick = () => { reset({ seed: newSeed() }); canvas.focus(); };

fetch("/api/spec").then((r) => r.json()).then((spec) => {
  canvas.height = Math.round(canvas.width * spec.height / spec.width);
  fitCanvas();
  addEventListener("resize", fitCanvas);
});
connect();
canvas.focus();
