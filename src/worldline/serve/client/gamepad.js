// A gamepad of the standard mapping: left stick walks, right stick turns, the cross is the keys, buttons command.
const DEAD = 0.1; // a stick at rest is never quite at rest
const CROSS = { 12: "KeyW", 13: "KeyS", 14: "ArrowLeft", 15: "ArrowRight" };

/** commands: what a button does, by its number in the standard mapping. connected(name): one was plugged in. */
export function gamepad(input, commands, connected) {
  const down = new Set();
  let running = false;

  const read = () => {
    const pad = [...(navigator.getGamepads?.() ?? [])].find((p) => p?.connected && p.axes.length >= 4);
    if (!pad) {
      running = false;
      input.tilt("gamepad", null);
      for (const button of down) if (CROSS[button]) input.release(CROSS[button]);
      down.clear();
      return;
    }
    requestAnimationFrame(read);
    if (!document.hasFocus()) return input.tilt("gamepad", null);
    const axes = pad.axes.slice(0, 4).map((value) => (Math.abs(value) < DEAD ? 0 : value));
    input.tilt("gamepad", axes.some(Boolean) ? axes : null);
    pad.buttons.forEach((button, i) => {
      if (button.pressed === down.has(i)) return;
      if (button.pressed) down.add(i);
      else down.delete(i);
      if (CROSS[i]) input[button.pressed ? "press" : "release"](CROSS[i]);
      else if (button.pressed) commands[i]?.();
    });
  };
  const start = () => {
    if (running) return;
    running = true;
    requestAnimationFrame(read);
  };
  addEventListener("gamepadconnected", (event) => {
    connected(event.gamepad.id.replace(/\s*\(.*$/, ""));
    start();
  });
}
