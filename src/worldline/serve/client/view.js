// The picture: the newest frame at every screen refresh, drawn as large as it is shown.
import { $ } from "./dom.js";

const canvas = $("view"), paint = canvas.getContext("2d", { alpha: false });
const SHARPEST = 2; // device pixels a page pixel: more costs and is not seen in a picture this soft

export class View {
  #next = null;
  #due = 0;
  #newest = -1;

  /** shown(frame, now): a frame is on the screen. */
  constructor(shown) {
    this.shown = shown;
    this.generation = 0;
    this.sharp = false;
    new ResizeObserver(() => this.#fit()).observe(canvas);
  }

  shape(width, height) {
    document.body.style.setProperty("--aspect", width / height);
  }

  /** Pictures of older generations no longer count. */
  begin(generation) {
    this.generation = generation;
    this.#newest = -1;
    this.#next?.picture.close();
    this.#next = null;
  }

  /** Until there are frames, a picture of where the walk will start. */
  async foretell(url) {
    const image = new Image();
    image.src = url;
    await image.decode().catch(() => {});
    if (!this.generation && image.naturalWidth) this.#render(image);
  }

  offer(frame, picture) {
    if (frame.generation !== this.generation || frame.index < this.#newest) return picture.close();
    this.#newest = frame.index;
    this.#next?.picture.close(); // two frames within one refresh: the newer is shown
    this.#next = { frame, picture };
    this.#due ||= requestAnimationFrame((now) => this.#draw(now));
  }

  #draw(now) {
    this.#due = 0;
    const next = this.#next;
    this.#next = null;
    if (!next) return;
    this.#render(next.picture);
    next.picture.close();
    this.shown(next.frame, now);
  }

  #render(picture) {
    paint.imageSmoothingEnabled = !this.sharp;
    paint.imageSmoothingQuality = "high";
    paint.drawImage(picture, 0, 0, canvas.width, canvas.height);
  }

  #fit() {
    const scale = Math.min(devicePixelRatio || 1, SHARPEST);
    const width = Math.round(canvas.clientWidth * scale), height = Math.round(canvas.clientHeight * scale);
    if (!width || !height || (width === canvas.width && height === canvas.height)) return;
    const old = this.copy(canvas.width, canvas.height);
    canvas.width = width;
    canvas.height = height;
    this.#render(old);
  }

  /** What is shown now, small. */
  copy(width, height = Math.round(width * canvas.height / canvas.width)) {
    const small = document.createElement("canvas");
    small.width = width;
    small.height = height;
    const brush = small.getContext("2d");
    brush.imageSmoothingQuality = "high";
    brush.drawImage(canvas, 0, 0, width, height);
    return small;
  }
}
