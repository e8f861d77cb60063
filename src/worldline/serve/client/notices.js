// Short messages: seen at the bottom of the page and read out by screen readers.
import { $, button } from "./dom.js";

const STAYS_MS = 6000, MOST = 3;

/** bad: a fault. action: {label, run}. link: {label, url, name} of a download. */
export function toast(text, { bad = false, action = null, link = null, stays = STAYS_MS } = {}) {
  const box = $("toasts"), note = document.createElement("div");
  for (const old of box.children) if (old.firstChild.textContent === text) old.remove();
  note.className = bad ? "toast bad" : "toast";
  note.append(Object.assign(document.createElement("span"), { textContent: text }));
  if (action) note.append(button(action.label, null, () => { note.remove(); action.run(); }));
  if (link) note.append(Object.assign(document.createElement("a"), { textContent: link.label, href: link.url, download: link.name ?? "" }));
  box.append(note);
  while (box.children.length > MOST) box.firstChild.remove();
  setTimeout(() => note.remove(), stays);
  return note;
}

/** A refusal or fault as a notice; a command that a newer one replaced is no news. */
export function complain(error) {
  if (error?.code !== "replaced") toast(error?.message ?? String(error), { bad: true, stays: 9000 });
}

/** For screen readers alone. */
export function announce(text) {
  if ($("announce").textContent !== text) $("announce").textContent = text;
}
