// What the page says over the picture: why there is nothing to see yet, or no longer, and what helps.
import { $ } from "./dom.js";
import { announce } from "./notices.js";

const STAGES = { weights: "Reading its weights", codec: "Reading its codec", quantise: "Rounding its weights to 8 bits", "warm-up": "Walking the first steps", compile: "Compiling for this machine" };
const WORDS = { connecting: "Connecting", loading: "Loading", queued: "Waiting", playing: "Live", paused: "Paused", lost: "Connection lost", error: "Stopped", ended: "Ended" };
let ticking = 0;

/** state: one of WORDS. With a title the veil covers the picture. big: a figure; progress: a bar that moves;
    action, other: {label, run}; until: seconds from now that `text` counts down, as a function of the seconds left. */
export function show(state, { title = "", text = "", big = "", progress = false, action = null, other = null, until = null } = {}) {
  clearInterval(ticking);
  document.body.dataset.state = state;
  for (const part of ["side", "transport", "sticks"]) $(part).inert = !["playing", "paused"].includes(state);
  $("state-text").textContent = WORDS[state];
  $("veil").classList.toggle("off", !title);
  announce(title ? `${title}. ${typeof text === "function" ? text(Math.ceil(until)) : text}` : WORDS[state]);
  if (!title) return;
  $("veil-title").textContent = title;
  $("veil-big").textContent = big;
  $("veil-big").hidden = !big;
  $("veil-progress").hidden = !progress;
  for (const [id, offered] of [["veil-action", action], ["veil-other", other]]) {
    $(id).hidden = !offered;
    if (offered) {
      $(id).textContent = offered.label;
      $(id).onclick = offered.run;
    }
  }
  if (until === null) {
    $("veil-text").textContent = text;
    return;
  }
  const end = performance.now() + 1000 * until;
  const tick = () => { $("veil-text").textContent = text(Math.max(0, Math.ceil((end - performance.now()) / 1000))); };
  tick();
  ticking = setInterval(tick, 500);
}

export const connecting = () => show("connecting", { title: "Connecting", progress: true });

export function loading(message) {
  const stage = STAGES[message.stage] ?? message.message ?? "";
  show("loading", { title: "Loading the world", text: message.elapsed_s > 3 ? `${stage} · ${Math.round(message.elapsed_s)} s` : stage, progress: true });
}

export function queued({ position, of, seats, eta_s }) {
  const busy = seats === 1 ? "Somebody is walking here." : `All ${seats} places are taken.`;
  show("queued", {
    title: position === 1 ? "You are next" : `Number ${position} of ${of} in line`,
    big: position === 1 ? "" : String(position),
    text: `${busy} Your walk starts by itself${eta_s ? `, in about ${duration(eta_s)}` : ""}.`,
    progress: position === 1,
  });
}

/** A message as a sentence; what begins with a path or a name in code stays as it is. */
const sentence = (text) => text && (/^[a-z]+[ ,]/.test(text) ? text[0].toUpperCase() + text.slice(1) : text) + (/[.!?]$/.test(text) ? "" : ".");
const duration = (s) => (s < 90 ? `${Math.max(5, 5 * Math.round(s / 5))} s` : `${Math.round(s / 60)} minutes`);

export function lost({ delay, error, tries, kept, again }) {
  const why = tries > 3 ? "The server does not answer." : sentence(error?.message ?? "");
  show("lost", {
    title: { queue_full: "The line is full", worker: "The world went down", internal: "The server failed" }[error?.code] ?? "Connection lost",
    text: (left) => [why, kept && tries <= 3 ? "Your walk is kept." : "", left ? `Trying again in ${left} s.` : "Trying again."].filter(Boolean).join(" "),
    until: delay,
    action: { label: "Try now", run: again },
  });
}

export function ended({ code, ended, error, again }) {
  if (code === 4409) {
    return show("ended", { title: "This walk goes on in another tab", text: "One tab at a time can walk it.", action: { label: "Bring it here", run: again } });
  }
  if (code === 4400) {
    return show("error", { title: "Page and server differ", text: error?.message ?? "The server speaks another version.", action: { label: "Reload the page", run: () => location.reload() } });
  }
  const titles = { loading: "The world could not be loaded", idle: "Nobody was walking", total: "Time is up", lease: "Your turn is over", left: "You left the world" };
  const broken = (ended?.reason ?? error?.code) === "loading";
  show(broken ? "error" : "ended", {
    title: titles[ended?.reason ?? error?.code] ?? "The walk has ended",
    text: ended?.reason === "left" ? "" : sentence(ended?.message ?? error?.message ?? ""),
    action: { label: broken ? "Try again" : "Walk again", run: again },
  });
}

/** The model failed; the walk can go on from before, or begin again. */
export function stopped(message, { back, again }) {
  const over = { label: "Start over", run: again };
  show("error", { title: "The world stopped", text: sentence(message), action: back ? { label: "Go back a second", run: back } : over, other: back ? over : null });
}
