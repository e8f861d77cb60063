// The description the world goes on under.
import { $ } from "./dom.js";

const MODES = { keep: "as you walk", recache: "all in sight", cut: "in a new shot", blend: "slowly" };

export class Scene {
  #inForce = "";

  /** apply(text, mode): a promise of the description in force. */
  constructor(apply) {
    this.apply = apply;
    $("prompt").addEventListener("input", () => this.#mark());
    $("prompt").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      $("scene").requestSubmit();
    });
    $("scene").addEventListener("submit", async (event) => {
      event.preventDefault();
      const text = $("prompt").value.trim();
      $("view").focus({ preventScroll: true });
      if (text !== this.#inForce) this.show(await this.apply(text, $("prompt-mode").value));
    });
  }

  world(modes, limit) {
    $("prompt").maxLength = limit;
    const box = $("prompt-mode");
    box.replaceChildren(...modes.map((mode) => new Option(MODES[mode] ?? mode, mode)));
    box.hidden = $("prompt-mode-label").hidden = modes.length < 2;
  }

  /** The description in force; what is being written is left alone. */
  show(text) {
    if (text === undefined) return;
    const editing = document.activeElement === $("prompt") && $("prompt").value !== this.#inForce;
    this.#inForce = text;
    if (!editing) $("prompt").value = text;
    this.#mark();
  }

  #mark() {
    $("apply").disabled = $("prompt").value.trim() === this.#inForce;
  }
}
