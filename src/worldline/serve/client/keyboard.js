// Keys: places on the keyboard steer (WASD is where it should be on every layout), letters command.
import { $ } from "./dom.js";

const editable = (target) => target instanceof HTMLElement && target.closest("input, textarea, select, [contenteditable]");

/** Whether the letters are the world's: nothing else on the page holds the focus. */
export const worldHasFocus = () => [document.body, null, $("view")].includes(document.activeElement);

/** codes(): KeyboardEvent codes that steer. commands: what a typed key does, by event.key or event.code; Shift+code, too. */
export function listen(input, codes, commands) {
  const mine = new Set(); // codes this device holds

  addEventListener("keydown", (event) => {
    if (event.key === "Tab") document.body.dataset.tabbing = ""; // from now on the world shows its focus, too
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.key === "Escape" && document.activeElement !== $("view")) return $("view").focus({ preventScroll: true });
    if (editable(event.target) || !worldHasFocus()) return;
    if (codes().includes(event.code)) {
      event.preventDefault();
      if (!mine.has(event.code)) {
        mine.add(event.code);
        input.press(event.code);
      }
      return;
    }
    const command = (event.shiftKey && commands[`Shift+${event.code}`]) || commands[event.key.toLowerCase()] || (!event.shiftKey && commands[event.code]);
    if (!command) return;
    event.preventDefault();
    if (!event.repeat || command.repeats) command();
  });

  addEventListener("keyup", (event) => {
    if (mine.delete(event.code)) input.release(event.code);
  });
  addEventListener("pointerdown", () => { delete document.body.dataset.tabbing; });
  const letGo = () => {
    mine.clear();
    input.releaseAll();
  };
  addEventListener("blur", letGo);
  document.addEventListener("visibilitychange", letGo);
}

/** The caps on the picture: pressed like keys, and named as this keyboard names them. */
export function caps(input, codeOf) {
  for (const cap of document.querySelectorAll("#caps kbd")) {
    let held = null;
    cap.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      cap.setPointerCapture(event.pointerId);
      held = codeOf(cap.dataset.key);
      if (held) input.press(held);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      cap.addEventListener(end, () => {
        if (held) input.release(held);
        held = null;
      });
    }
  }
  navigator.keyboard?.getLayoutMap?.().then((layout) => {
    for (const [name, code] of Object.entries({ w: "KeyW", a: "KeyA", s: "KeyS", d: "KeyD" })) {
      const letter = layout.get(code);
      if (letter?.length === 1) document.querySelector(`#caps [data-key="${name}"]`).textContent = letter.toUpperCase();
    }
  }).catch(() => {}); // a policy may forbid it: the letters are right for most
}
