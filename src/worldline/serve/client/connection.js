// One WebSocket that comes back by itself: hello, resuming, commands with answers, and what every close code means.
import { VERSION } from "./protocol.js";
import { keep, kept } from "./memory.js";

const RETRY_S = [0.5, 1, 2, 4, 8];
const RESTART_S = 1.5;
const BY_HAND = new Set([1000, 4408, 4410, 4429]); // the person decides whether to come back
const PING_MS = 2000;

/** What a command that the server refused is rejected with. */
export class Refused extends Error {
  constructor({ code, message, retry }) {
    super(message);
    Object.assign(this, { code, retry });
  }
}

export class Connection {
  #socket = null;
  #tries = 0;
  #timer = 0;
  #ids = 0;
  #asked = new Map();
  #last = {}; // the newest `state ended` or connection-wide error, which says why a close came

  /** on: {message(m), binary(buffer), opening(), lost({delay, by, code}), ended({code, ended, error})}.
      begin(): the fields of hello that a new walk begins with. */
  constructor(on, begin) {
    this.on = on;
    this.begin = begin;
    this.rtt = 0;
    setInterval(() => this.say("ping", { t: performance.now(), rtt_ms: this.rtt || undefined }), PING_MS);
    addEventListener("online", () => this.#timer && this.open());
  }

  get resume() {
    return kept("resume");
  }

  open() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#drop();
    this.#last = {};
    this.on.opening();
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.say("hello", { version: VERSION, resume: this.resume, ...this.begin() });
    socket.onmessage = (event) => {
      if (typeof event.data === "string") this.#receive(JSON.parse(event.data));
      else this.on.binary(event.data);
    };
    socket.onclose = (event) => this.#closed(event.code);
    this.#socket = socket;
  }

  say(type, fields = {}) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify({ type, ...fields }));
  }

  /** A command; its `done`, or a rejection by Refused. */
  ask(type, fields = {}) {
    if (this.#socket?.readyState !== WebSocket.OPEN) {
      return Promise.reject(new Refused({ code: "lost", message: "There is no connection just now.", retry: "reconnect" }));
    }
    const id = ++this.#ids;
    return new Promise((resolve, reject) => {
      this.#asked.set(id, { resolve, reject });
      this.say(type, { ...fields, id });
    });
  }

  /** A file to the server; its id. */
  async upload(kind, blob) {
    const response = await fetch(`/api/uploads?kind=${kind}`, {
      method: "POST", body: blob, headers: { "Worldline-Session": this.resume ?? "", "Content-Type": blob.type || "application/octet-stream" },
    });
    const said = await response.json().catch(() => ({}));
    if (!response.ok) throw new Refused(said.error ?? { code: "upload", message: `The server refused the file (${response.status}).` });
    return said.id;
  }

  #receive(message) {
    switch (message.type) {
      case "pong":
        this.rtt = performance.now() - message.t;
        return;
      case "state":
        if (message.resume) keep("resume", message.resume);
        if (message.state === "live") this.#tries = 0;
        if (message.state === "ended") this.#last.ended = message;
        break;
      case "done":
        this.#answer(message.id)?.resolve(message);
        return;
      case "error": {
        const asked = this.#answer(message.id);
        asked?.reject(new Refused(message));
        if (asked && message.retry !== "reset") return;
        this.#last.error = message;
      }
    }
    this.on.message(message);
  }

  #answer(id) {
    const asked = this.#asked.get(id);
    this.#asked.delete(id);
    return asked;
  }

  #closed(code) {
    this.#drop();
    const { ended, error } = this.#last;
    if (code === 4400 || code === 4409 || BY_HAND.has(code) || error?.retry === "never") {
      if (code !== 4409) keep("resume", null);
      return this.on.ended({ code, ended, error });
    }
    const asked = error?.retry_after_s ?? ended?.retry_after_s;
    const delay = asked ?? (code === 1001 || code === 1012 ? RESTART_S : RETRY_S[Math.min(this.#tries, RETRY_S.length - 1)]);
    this.#tries += 1;
    this.#timer = setTimeout(() => this.open(), 1000 * delay);
    this.on.lost({ delay, code, error, tries: this.#tries });
  }

  #drop() {
    const socket = this.#socket;
    this.#socket = null;
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close();
    }
    for (const { reject } of this.#asked.values()) {
      reject(new Refused({ code: "lost", message: "The connection was lost before the answer came.", retry: "reconnect" }));
    }
    this.#asked.clear();
  }
}
