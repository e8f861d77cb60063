// What is kept of a walk: videos, and files from which it goes on.
import { $, clock, download, swapIcon } from "./dom.js";
import { complain, toast } from "./notices.js";

/** Give a file of the server's to the person. */
function offer(file, text) {
  if (!file) return;
  download(file.url, file.name);
  toast(text, { link: { label: "Save again", url: file.url, name: file.name }, stays: 12_000 });
}

export class Recorder {
  #frames = null; // recorded so far; null while nothing is

  /** ask(type, fields): a command's `done`, or null. */
  constructor(ask) {
    this.ask = ask;
    $("record").onclick = $("record-2").onclick = () => this.toggle();
  }

  world(fps) {
    this.fps = fps;
  }

  /** Whether the server records. */
  set(on) {
    this.#frames = on ? this.#frames ?? 0 : null;
    $("rec").hidden = !on;
    for (const id of ["record", "record-2"]) $(id).setAttribute("aria-pressed", String(on));
    $("record").setAttribute("aria-label", on ? "Stop recording" : "Record a video");
    swapIcon($("record"), on ? "stop" : "record");
    $("record-word").textContent = on ? "Stop" : "Record";
    if (on) $("rec-time").textContent = clock(this.#frames / this.fps);
  }

  /** A recorded frame is on the screen. */
  count() {
    if (this.#frames !== null) $("rec-time").textContent = clock(++this.#frames / this.fps);
  }

  async toggle() {
    const on = this.#frames === null, done = await this.ask("record", { on });
    if (!done) return;
    this.set(on);
    offer(done.file, "Your video is ready.");
  }

  /** The server stopped by itself. */
  stopped({ on, file, reason }) {
    if (on) return;
    this.set(false);
    offer(file, `The recording stopped: ${reason}.`);
  }
}

export class Walkfiles {
  /** ask(type, fields): a command's `done`, or null. upload(blob): the id of an uploaded walk. */
  constructor(ask, upload) {
    Object.assign(this, { ask, upload });
    $("replay-save").onclick = () => this.save();
    $("replay-file").onchange = (event) => {
      this.open(event.target.files[0]);
      event.target.value = "";
    };
  }

  async save() {
    const done = await this.ask("save");
    offer(done?.file, "Your walk is in this file. Anybody with this world can open it and go on.");
  }

  async open(file) {
    if (!file) return;
    let id;
    try {
      id = await this.upload(file);
    } catch (error) {
      return complain(error);
    }
    const watch = $("watch").checked;
    if (await this.ask("load", { file: id, watch }) && watch) toast("Watching the walk again. Any key takes over.");
  }
}
