// Walks that go by themselves: the world's presets, or one written as a trajectory.
import { $, button } from "./dom.js";

export class Walks {
  #playing = null;

  /** play(actions): a promise; "" stops. */
  constructor(play) {
    this.play = play;
    $("walk").addEventListener("submit", (event) => {
      event.preventDefault();
      const actions = $("trajectory").value.trim();
      if (actions) this.#go(actions);
      $("view").focus({ preventScroll: true });
    });
  }

  world(presets) {
    $("walks").replaceChildren(...presets.map(({ name, actions }) => {
      const made = button(name, null, () => this.#go(this.#playing === actions ? "" : actions));
      made.title = actions;
      made.dataset.actions = actions;
      made.setAttribute("aria-pressed", "false");
      return made;
    }));
  }

  /** Whether a walk goes by itself now. */
  ended() {
    this.#mark(null);
  }

  async #go(actions) {
    if (await this.play(actions)) this.#mark(actions || null);
  }

  #mark(actions) {
    this.#playing = actions;
    for (const made of $("walks").children) made.setAttribute("aria-pressed", String(made.dataset.actions === actions));
  }
}
