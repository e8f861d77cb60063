// What to press next, on the picture: only while it is not plain.
import { $ } from "./dom.js";
import { keep, kept } from "./memory.js";

const LOOKED_MS = 4000;

export class Hint {
  #moved = kept("moved", false); // this person has walked before
  #looking = false;
  #looked = false;
  paused = false;
  live = false;

  /** The person steers: no need to say how. */
  moved() {
    if (this.#moved || !this.live) return;
    this.#moved = true;
    keep("moved", true);
    this.show();
  }

  /** The mouse looks, or no longer does. */
  looking(on) {
    this.#looking = on;
    this.show();
    if (on) setTimeout(() => { this.#looked = true; this.show(); }, LOOKED_MS);
  }

  show() {
    const text = this.live ? this.#text(document.body.dataset.touch === "on") : "";
    $("hint").replaceChildren(...text.split(/(\[.+?\])/).map((part) => (
      part.startsWith("[") ? Object.assign(document.createElement("kbd"), { textContent: part.slice(1, -1) }) : part
    )));
    $("hint").hidden = !text;
  }

  #text(touch) {
    if (this.paused) return touch ? "Paused" : "Paused · [P] goes on · [.] one step";
    if (this.#looking) return this.#looked ? "" : "Move the mouse to look · [Esc] lets go";
    if (this.#moved) return "";
    return touch ? "Left stick walks, right stick turns" : "[W] [A] [S] [D] walk · [←] [→] turn · click to look with the mouse";
  }
}
