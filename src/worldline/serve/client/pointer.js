// Mouse look: a click on the picture takes the pointer, Esc gives it back.
import { $ } from "./dom.js";

const JUMP = 300; // pixels: some systems report one huge movement when a pointer is taken

/** changed(on): the mouse has begun or ceased to look. */
export function mouseLook(input, changed) {
  const canvas = $("view");
  canvas.addEventListener("click", (event) => {
    canvas.focus({ preventScroll: true });
    if (event.pointerType === "touch" || document.pointerLockElement) return;
    try {
      canvas.requestPointerLock?.()?.catch?.(() => {}); // refused right after Esc: the next click may
    } catch {
      // No pointer lock here: arrows turn.
    }
  });
  document.addEventListener("pointerlockchange", () => {
    const on = document.pointerLockElement === canvas;
    document.body.dataset.look = on ? "on" : "";
    changed(on);
  });
  addEventListener("mousemove", (event) => {
    if (document.pointerLockElement !== canvas || Math.abs(event.movementX) > JUMP || Math.abs(event.movementY) > JUMP) return;
    input.look(event.movementX, event.movementY);
  });
}
