// The two dialogs, and what this browser remembers of its person's taste.
import { $ } from "./dom.js";
import { setting, setSetting } from "./memory.js";

/** Bind a control to a setting; use(value) now and at every change. */
function bind(id, name, otherwise, use) {
  const control = $(id), checkbox = control.type === "checkbox";
  const value = setting(name, otherwise);
  if (checkbox) control.checked = value;
  else control.value = value;
  use(value);
  control.addEventListener("input", () => {
    const now = checkbox ? control.checked : control.value;
    setSetting(name, now);
    use(now);
  });
}

export function settings({ view, input, touch, codec, transport }) {
  bind("set-theme", "theme", "", (theme) => { document.documentElement.dataset.theme = theme; });
  bind("set-picture", "picture", "smooth", (kind) => {
    view.sharp = kind === "sharp";
    $("view").classList.toggle("sharp", view.sharp);
  });
  bind("set-codec", "codec", "", codec);
  bind("set-transport", "transport", "websocket", transport);
  bind("set-mouse", "speed", "1", (speed) => { input.speed = Number(speed); });
  bind("set-caps", "caps", true, (on) => document.body.classList.toggle("no-caps", !on));
  bind("set-hud", "hud", true, (on) => document.body.classList.toggle("no-hud", !on));
  bind("set-touch", "touch", "", touch);
}

/** Streams that both ends can do; with one there is nothing to choose. */
export function streams(codecs) {
  const names = { jpeg: "JPEG: every picture whole", h264: "H.264: a quarter of the data" };
  const box = $("set-codec"), value = setting("codec", "");
  box.replaceChildren(new Option("automatic", ""), ...codecs.map((codec) => new Option(names[codec] ?? codec, codec)));
  box.value = codecs.includes(value) ? value : "";
  box.disabled = codecs.length < 2;
}

export function dialogs() {
  for (const [opener, dialog] of [["help-open", "help"], ["settings-open", "settings"]]) {
    $(opener).onclick = () => $(dialog).showModal();
    $(dialog).querySelector(".close").onclick = () => $(dialog).close();
    $(dialog).addEventListener("click", (event) => { if (event.target === $(dialog)) $(dialog).close(); });
    $(dialog).addEventListener("close", () => $("view").focus({ preventScroll: true }));
  }
}
