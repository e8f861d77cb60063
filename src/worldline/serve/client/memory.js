// What this tab remembers over a reload (the walk) and what this browser remembers for good (settings).
const PREFIX = "worldline.";

function read(store, name, otherwise) {
  try {
    return JSON.parse(store.getItem(PREFIX + name)) ?? otherwise;
  } catch {
    return otherwise; // storage is blocked, or holds what an older page wrote
  }
}

function write(store, name, value) {
  try {
    if (value === null) store.removeItem(PREFIX + name);
    else store.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // Full or blocked: nothing here is needed to play.
  }
}

export const kept = (name, otherwise = null) => read(sessionStorage, name, otherwise);
export const keep = (name, value) => write(sessionStorage, name, value);
export const setting = (name, otherwise = null) => read(localStorage, name, otherwise);
export const setSetting = (name, value) => write(localStorage, name, value);
