// Two sticks under the thumbs: the left one walks, the right one turns.
import { setting } from "./memory.js";

const tilt = { move: [0, 0], look: [0, 0] };

export function sticks(input) {
  for (const stick of document.querySelectorAll(".stick")) {
    const thumb = stick.querySelector(".thumb"), which = stick.dataset.stick;
    let finger = null;

    const point = (event) => {
      const box = stick.getBoundingClientRect(), reach = box.width / 2 - thumb.offsetWidth / 4;
      let x = (event.clientX - box.left - box.width / 2) / reach, y = (event.clientY - box.top - box.height / 2) / reach;
      const far = Math.max(1, Math.hypot(x, y));
      x /= far;
      y /= far;
      set(x, y, reach);
    };
    const set = (x, y, reach = 0) => {
      tilt[which] = [x, y];
      thumb.style.setProperty("--x", `${x * reach}px`);
      thumb.style.setProperty("--y", `${y * reach}px`);
      const axes = [...tilt.move, ...tilt.look];
      input.tilt("touch", axes.some(Boolean) ? axes : null);
    };

    stick.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      finger = event.pointerId;
      stick.setPointerCapture(finger);
      stick.classList.add("held");
      point(event);
    });
    stick.addEventListener("pointermove", (event) => { if (event.pointerId === finger) point(event); });
    for (const end of ["pointerup", "pointercancel"]) {
      stick.addEventListener(end, (event) => {
        if (event.pointerId !== finger) return;
        finger = null;
        stick.classList.remove("held");
        set(0, 0);
      });
    }
  }
}

/** Show or hide the sticks: as set, else where fingers are the first way to point. */
export function touchMode() {
  const coarse = matchMedia("(pointer: coarse)");
  const show = () => {
    const wish = setting("touch", "");
    document.body.dataset.touch = wish || (coarse.matches ? "on" : "off");
  };
  coarse.addEventListener("change", show);
  addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch" && !setting("touch", "")) document.body.dataset.touch = "on";
  });
  show();
  return show;
}
