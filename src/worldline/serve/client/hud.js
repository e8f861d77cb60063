// The figures under the picture, and the keys that act on it.
import { $ } from "./dom.js";

const RECENT_MS = 2000, DELAYS = 20;
const WRITE_MS = 250; // figures that change faster cannot be read

const middle = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

export class Hud {
  #shown = [];
  #delays = [];
  #ages = [];
  #offset = Infinity; // least (arrival - server clock): what the two clocks differ by, and the way
  #written = 0;
  #caps = new Map();
  #fastest = 3; // degrees a frame at the end of the gauge, until the world turns faster

  constructor(input, rtt) {
    this.input = input;
    this.rtt = rtt;
  }

  world(keys) {
    this.#caps = new Map(keys.map((name, i) => [i, document.querySelector(`#caps [data-key="${name}"]`)]));
  }

  /** Another connection or scene: what was measured before says nothing of it. */
  restart() {
    this.#shown = [];
    this.#ages = [];
    this.#offset = Infinity;
    this.input.unanswerable();
  }

  shown(frame, now) {
    for (const [i, cap] of this.#caps) cap?.classList.toggle("on", Boolean((frame.keys >> i) & 1));
    this.#fastest = Math.max(this.#fastest, Math.abs(frame.yaw));
    $("yaw").firstChild.style.left = `${50 + 50 * frame.yaw / this.#fastest}%`;
    if (frame.flags & 4) return; // a still shows where the walk stands; it answers nothing
    this.#delays.push(...this.input.answered(frame.seq, now));
    this.#delays.splice(0, this.#delays.length - DELAYS);
    this.#shown.push(now);
    while (now - this.#shown[0] > RECENT_MS) this.#shown.shift();
    // The fastest arrival so far had no wait on the way: what others take longer, they waited.
    const difference = frame.arrived - frame.serverMs;
    this.#offset = Math.min(this.#offset, difference);
    const shownAt = performance.timeOrigin + now;
    this.#ages.push(frame.queueMs + this.rtt() / 2 + (difference - this.#offset) + Math.max(0, shownAt - frame.arrived));
    this.#ages.splice(0, this.#ages.length - DELAYS);
    if (now - this.#written < WRITE_MS) return;
    this.#written = now;
    if (this.#shown.length > 4) $("fps").textContent = (1000 * (this.#shown.length - 1) / (now - this.#shown[0])).toFixed(1);
    if (this.#delays.length) $("a2p").textContent = Math.round(middle(this.#delays));
    $("age").textContent = Math.round(middle(this.#ages));
    $("chunk").textContent = Math.round(frame.computeMs);
  }
}
