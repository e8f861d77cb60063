// How long the place is still this person's, where that is limited.
import { $, clock } from "./dom.js";
import { announce } from "./notices.js";

const WARN_S = 60; // an idle or total limit is told of this long before
const WHY = { waiting: "Others are waiting", idle: "Are you still there?", total: "Time is nearly up" };
let timer = 0;

/** left_s: seconds, or null where there is no end in sight. */
export function lease({ left_s: left, reason }) {
  clearInterval(timer);
  const told = left !== null && (left <= WARN_S || reason === "waiting");
  $("lease").hidden = !told;
  if (!told) return;
  const end = performance.now() + 1000 * left;
  const tick = () => { $("lease").textContent = `${WHY[reason] ?? "Time left"} · ${clock(Math.max(0, (end - performance.now()) / 1000))}`; };
  tick();
  announce($("lease").textContent);
  timer = setInterval(tick, 500);
}

export const noLease = () => lease({ left_s: null });
