// What is held now, from every device together, as the one message that says so.
const MOST_UNANSWERED = 256;

export class Input {
  #held = new Map(); // code -> how many devices hold it
  #axes = new Map(); // device -> [left x, left y, right x, right y]
  #mouse = [0, 0];
  #due = 0;
  #sent = ""; // keys and axes as the server knows them

  /** say(type, fields) sends a message. first(): called once, at the person's first input. */
  constructor(say, first) {
    this.say = say;
    this.first = first;
    this.speed = 1; // of mouse and sticks
    this.#forget();
  }

  /** A new connection numbers from 1 and knows of nothing held. */
  restart() {
    this.#forget();
    this.#sent = "";
    if (this.#held.size || this.#axes.size) this.#send();
  }

  press(code) {
    this.#held.set(code, (this.#held.get(code) ?? 0) + 1);
    if (this.#held.get(code) === 1) this.#send();
  }

  release(code) {
    const count = this.#held.get(code) ?? 0;
    if (count > 1) this.#held.set(code, count - 1);
    else if (this.#held.delete(code)) this.#send();
  }

  releaseAll() {
    const any = this.#held.size || this.#axes.size;
    this.#held.clear();
    this.#axes.clear();
    if (any) this.#send();
  }

  /** Pixels of mouse travel. */
  look(dx, dy) {
    this.#mouse[0] += dx * this.speed;
    this.#mouse[1] += dy * this.speed;
    this.#soon();
  }

  /** Axes of a device, each -1..1, y down positive; null when it is let go. */
  tilt(device, axes) {
    if (axes) this.#axes.set(device, axes);
    else if (!this.#axes.delete(device)) return;
    this.#soon();
  }

  /** Milliseconds from each input that a frame is the first to answer to `now`. */
  answered(seq, now) {
    const delays = [];
    for (const [sent, at] of this.sentAt) {
      if (sent > seq) break;
      this.sentAt.delete(sent);
      delays.push(now - at);
    }
    return delays;
  }

  /** Inputs on their way will not be answered in time (a pause, another scene): they measure nothing. */
  unanswerable() {
    this.sentAt.clear();
  }

  #forget() {
    this.seq = 0;
    this.sentAt = new Map();
    this.#mouse = [0, 0];
  }

  #soon() {
    this.#due ||= requestAnimationFrame(() => this.#send());
  }

  #send() {
    cancelAnimationFrame(this.#due);
    this.#due = 0;
    const keys = [...this.#held.keys()].slice(0, 16), axes = this.#sum();
    const state = JSON.stringify([keys, axes]), mouse = this.#mouse.map(Math.round);
    if (state === this.#sent && !mouse[0] && !mouse[1]) return;
    this.#sent = state;
    this.#mouse = this.#mouse.map((travel, i) => travel - mouse[i]);
    this.seq += 1;
    this.sentAt.set(this.seq, performance.now());
    if (this.sentAt.size > MOST_UNANSWERED) this.sentAt.delete(this.sentAt.keys().next().value);
    this.say("input", { seq: this.seq, keys, mouse, axes });
    this.first();
  }

  #sum() {
    const sum = [0, 0, 0, 0];
    for (const axes of this.#axes.values()) axes.forEach((value, i) => { sum[i] += value * (i > 1 ? this.speed : 1); });
    return sum.map((value) => Math.round(100 * Math.max(-1, Math.min(1, value))) / 100);
  }
}
