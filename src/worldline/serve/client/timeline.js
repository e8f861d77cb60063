// Time: how far the walk has come, and going back along it.
import { $, clock } from "./dom.js";

const MOST_PICTURES = 400, KEY_PAUSE_MS = 350;

export class Timeline {
  #pictures = new Map(); // chunk -> small canvas of its first frame
  #every = 1; // chunks between kept pictures: doubles as the walk grows
  #dragging = false;
  #byKey = false;
  #timer = 0;
  #wanted = null; // chunk that a rewind under way goes to

  /** rewind(chunk): a promise of the walk being cut there. copy(width): the picture now, small. */
  constructor(rewind, copy) {
    this.rewind = rewind;
    this.copy = copy;
    this.chunk = 0;
    const range = $("rewind");
    range.addEventListener("pointerdown", () => { this.#byKey = false; });
    range.addEventListener("keydown", () => { this.#byKey = true; });
    range.addEventListener("input", () => this.#peek());
    range.addEventListener("change", () => {
      clearTimeout(this.#timer); // arrow keys change it step by step: go when they rest
      this.#timer = setTimeout(() => this.#go(Number(range.value)), this.#byKey ? KEY_PAUSE_MS : 0);
    });
    range.addEventListener("blur", () => this.#done());
    range.addEventListener("pointerup", () => $("view").focus({ preventScroll: true }));
  }

  world({ fps, frames_per_chunk: frames, width, height }) {
    Object.assign(this, { fps, frames });
    $("peek").querySelector("canvas").height = Math.round(144 * height / width);
  }

  /** Where the walk stands: a scene has begun, or a frame is shown. */
  stand(chunk, frame, generationBegan = false) {
    if (generationBegan) {
      this.#wanted = null;
      for (const kept of this.#pictures.keys()) if (kept > chunk) this.#pictures.delete(kept);
    }
    this.chunk = chunk;
    const range = $("rewind");
    $("clock").textContent = clock(frame / this.fps);
    $("back").disabled = range.disabled = chunk === 0;
    if (Number(range.max) !== chunk && !this.#dragging) {
      range.max = chunk;
      range.value = chunk;
      range.setAttribute("aria-valuetext", `${clock(frame / this.fps)}, the present`);
    }
    this.#fill();
  }

  /** A new walk: no picture of the old one belongs to it. */
  forget() {
    this.#pictures.clear();
    this.#every = 1;
  }

  /** The first frame of a chunk is on the screen. */
  keep(chunk) {
    if (chunk % this.#every || this.#pictures.has(chunk)) return;
    this.#pictures.set(chunk, this.copy(96));
    if (this.#pictures.size <= MOST_PICTURES) return;
    this.#every *= 2;
    for (const kept of this.#pictures.keys()) if (kept % this.#every) this.#pictures.delete(kept);
  }

  back(seconds) {
    const from = this.#wanted ?? this.chunk;
    if (from > 0) this.#go(Math.max(0, from - Math.max(1, Math.round(seconds * this.fps / this.frames))));
  }

  time(chunk) {
    return chunk * this.frames / this.fps;
  }

  async #go(chunk) {
    this.#done();
    if (chunk >= (this.#wanted ?? this.chunk)) return this.stand(this.chunk, this.chunk * this.frames);
    this.#wanted = chunk;
    await this.rewind(chunk);
    if (this.#wanted === chunk) this.#wanted = null;
  }

  #done() {
    this.#dragging = false;
    $("peek").hidden = true;
    $("rewind").max = this.chunk;
    $("rewind").value = this.chunk;
    this.#fill();
  }

  #fill() {
    const range = $("rewind");
    range.style.setProperty("--fill", `${range.max > 0 ? 100 * range.value / range.max : 0}%`);
  }

  #peek() {
    const range = $("rewind"), chunk = Number(range.value), peek = $("peek"), canvas = peek.querySelector("canvas");
    this.#dragging = true;
    this.#fill();
    const at = clock(this.time(chunk));
    range.setAttribute("aria-valuetext", `${at} of ${clock(this.time(Number(range.max)))}`);
    peek.querySelector("span").textContent = at;
    const picture = this.#nearest(chunk);
    canvas.hidden = !picture;
    if (picture) {
      const brush = canvas.getContext("2d");
      brush.imageSmoothingQuality = "high";
      brush.drawImage(picture, 0, 0, canvas.width, canvas.height);
    }
    peek.hidden = false;
    const share = range.max > 0 ? chunk / range.max : 1, thumb = 14, half = peek.offsetWidth / 2, wide = range.offsetWidth;
    peek.style.left = `${Math.max(half - 8, Math.min(wide - half + 8, thumb / 2 + share * (wide - thumb)))}px`;
  }

  #nearest(chunk) {
    let best = null;
    for (const kept of this.#pictures.keys()) if (kept <= chunk && (best === null || kept > best) && chunk - kept <= 2 * this.#every) best = kept;
    return best === null ? null : this.#pictures.get(best);
  }
}
