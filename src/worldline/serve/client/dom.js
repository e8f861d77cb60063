// Shorthand for the page's elements.
export const $ = (id) => document.getElementById(id);

/** Seconds as 1:05. */
export const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export const swapIcon = (button, name) => button.querySelector("use").setAttribute("href", `#i-${name}`);

/** <button type=button> with a text or an element in it. */
export function button(content, label, onclick) {
  const made = document.createElement("button");
  made.type = "button";
  made.append(content);
  if (label) {
    made.title = label;
    made.setAttribute("aria-label", label);
  }
  made.onclick = onclick;
  return made;
}

export function download(url, name) {
  const link = document.createElement("a");
  link.href = url;
  link.download = name ?? "";
  link.click();
}
