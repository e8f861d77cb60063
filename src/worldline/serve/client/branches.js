// Branch slots: moments kept in the server's memory, with a picture kept here.
import { $, button, clock, icon } from "./dom.js";
import { keep, kept } from "./memory.js";

export class Branches {
  #pictures = kept("slots", {}); // slot -> {url, time}
  #full = new Set();

  /** go(slot), save(slot): promises. now(): {url, time} of what is shown. */
  constructor({ go, save, now }) {
    Object.assign(this, { goTo: go, save, now, count: 0 });
  }

  world(count) {
    this.count = count;
    this.#draw();
  }

  /** The slots that the server holds; 0 is its own. */
  hold(slots) {
    this.#full = new Set(slots.filter((slot) => slot > 0));
    this.#draw();
  }

  async keep(slot) {
    if (slot > this.count) return;
    const now = this.now();
    await this.save(slot);
    this.#pictures[slot] = now;
    keep("slots", this.#pictures);
    this.#full.add(slot);
    this.#draw();
  }

  go(slot) {
    if (this.#full.has(slot)) this.goTo(slot);
  }

  #draw() {
    const box = $("slots"), focused = [...box.querySelectorAll("button")].indexOf(document.activeElement);
    box.replaceChildren(...Array.from({ length: this.count }, (_, i) => this.#tile(i + 1)));
    if (focused >= 0) box.querySelectorAll("button")[focused]?.focus();
    $("slots-note").hidden = this.#full.size > 0;
  }

  #tile(slot) {
    const tile = document.createElement("div"), full = this.#full.has(slot), about = full ? this.#pictures[slot] : null;
    tile.className = full ? "slot full" : "slot";
    if (!full) {
      tile.append(button(icon("plus"), `Keep this moment as branch ${slot} (Shift+${slot})`, () => this.keep(slot)));
      return tile;
    }
    const picture = about ? Object.assign(document.createElement("img"), { src: about.url, alt: "" }) : "";
    const time = about ? `, at ${clock(about.time)}` : "";
    tile.append(
      button(picture, `Go to branch ${slot}${time} (${slot})`, () => this.go(slot)),
      Object.assign(document.createElement("span"), { className: "number", textContent: slot }),
      button(icon("save"), `Keep this moment as branch ${slot} instead (Shift+${slot})`, () => this.keep(slot)),
    );
    tile.firstChild.append(tile.children[1]);
    tile.lastChild.classList.add("drop");
    return tile;
  }
}
