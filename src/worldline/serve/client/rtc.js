// WebRTC beside the WebSocket: pictures from a video track, inputs over an unordered channel. The WebSocket carries the header of
// every picture, which names the RTP timestamp that the browser tells of the picture it shows.
const CONNECT_MS = 8000, GATHER_MS = 1000;
const DARK_MS = 5000; // headers without pictures for so long: the track does not arrive
const WAITING = 8; // headers, and pictures, that wait for each other
const CHANNEL = ["input", "ack"]; // what may be sent over it

/** Why this browser cannot, or nothing. */
export function unable() {
  if (typeof RTCPeerConnection === "undefined") return "this browser has no WebRTC, or it is switched off";
  if (!("requestVideoFrameCallback" in HTMLVideoElement.prototype)) return "this browser does not tell which picture it shows";
  return "";
}

const within = (ms, what, promise) => Promise.race([promise, new Promise((_, reject) => { setTimeout(() => reject(new Error(what)), ms); })]);

export class Rtc {
  #peer = null;
  #channel = null;
  #video = null;
  #frames = new Map(); // by RTP timestamp
  #pictures = new Map();
  #last = ""; // generation and number of the frame shown last: one that stands is sent again and again
  #dark = 0; // since when headers have come without a picture

  /** picture(frame, drawable): the taker closes it. failed(reason): it was in use and no longer is. */
  constructor(picture, failed) {
    this.picture = picture;
    this.failed = failed;
  }

  get on() {
    return this.#channel?.readyState === "open";
  }

  /** Connect, and have pictures sent there. Throws an Error with the reason where that cannot be. ask: a command's answer. */
  async start(ask) {
    this.stop();
    const why = unable();
    if (why) throw new Error(why);
    const peer = new RTCPeerConnection({ iceServers: [] });
    this.#peer = peer;
    try {
      const { receiver } = peer.addTransceiver("video", { direction: "recvonly" });
      const channel = peer.createDataChannel("controls", { ordered: false });
      const open = new Promise((resolve) => { channel.onopen = resolve; });
      const video = Object.assign(document.createElement("video"), { muted: true, playsInline: true, autoplay: true });
      peer.ontrack = ({ track }) => {
        video.srcObject = new MediaStream([track]);
        video.play().catch(() => {}); // muted: it may always
      };
      this.#video = video;
      video.requestVideoFrameCallback((_, about) => this.#seen(peer, about));
      await peer.setLocalDescription();
      await this.#gathered(peer);
      const { sdp } = await ask("rtc", { sdp: peer.localDescription.sdp });
      await peer.setRemoteDescription({ type: "answer", sdp });
      await within(CONNECT_MS, "the server cannot be reached over UDP", open);
      if ("jitterBufferTarget" in receiver) receiver.jitterBufferTarget = 0; // the world does not wait for smoothness
      if (this.#peer !== peer) throw new Error("it was ended meanwhile");
      this.#channel = channel;
      await ask("codec", { codec: "track" });
      peer.onconnectionstatechange = () => {
        if (["failed", "disconnected", "closed"].includes(peer.connectionState)) this.#fail(peer, "the connection over UDP broke");
      };
      channel.onclose = () => this.#fail(peer, "the server ended it");
    } catch (error) {
      if (this.#peer === peer) this.stop();
      else peer.close();
      throw error;
    }
  }

  stop() {
    if (this.#peer) this.#peer.onconnectionstatechange = this.#peer.ontrack = null;
    if (this.#channel) this.#channel.onclose = null;
    this.#peer?.close();
    if (this.#video) this.#video.srcObject = null;
    this.#peer = this.#channel = this.#video = null;
    for (const picture of this.#pictures.values()) picture.close();
    this.#pictures.clear();
    this.#frames.clear();
    this.#last = "";
    this.#dark = 0;
  }

  /** Whether a message went over the channel. */
  say(type, fields) {
    if (!this.on || !CHANNEL.includes(type)) return false;
    this.#channel.send(JSON.stringify({ type, ...fields }));
    return true;
  }

  /** The header of a picture on the track. */
  take(frame) {
    if (!this.#peer) return;
    const at = new DataView(frame.payload.buffer, frame.payload.byteOffset).getUint32(0, true);
    this.#wait(this.#frames, at, frame);
    this.#meet(at);
    const now = performance.now();
    if (document.hidden) this.#dark = 0;
    else this.#dark ||= now;
    if (this.#dark && now - this.#dark > DARK_MS) this.#fail(this.#peer, "no pictures arrive over UDP");
  }

  async #seen(peer, { rtpTimestamp }) {
    if (this.#peer !== peer) return;
    const video = this.#video;
    video.requestVideoFrameCallback((_, about) => this.#seen(peer, about));
    if (rtpTimestamp === undefined) return this.#fail(peer, "this browser does not tell which picture it shows");
    const picture = await createImageBitmap(video).catch(() => null);
    if (!picture) return;
    if (this.#peer !== peer) return picture.close();
    this.#wait(this.#pictures, rtpTimestamp, picture);
    this.#meet(rtpTimestamp);
  }

  #meet(at) {
    const frame = this.#frames.get(at), picture = this.#pictures.get(at);
    if (!frame || !picture) return;
    this.#frames.delete(at);
    this.#pictures.delete(at);
    this.#dark = 0;
    const name = `${frame.generation} ${frame.index}`;
    if (name === this.#last) return picture.close();
    this.#last = name;
    this.picture(frame, picture);
  }

  #wait(among, at, what) {
    among.set(at, what);
    while (among.size > WAITING) {
      const [oldest] = among.keys();
      among.get(oldest).close?.();
      among.delete(oldest);
    }
  }

  #gathered(peer) {
    if (peer.iceGatheringState === "complete") return null;
    return Promise.race([
      new Promise((resolve) => { peer.onicegatheringstatechange = () => { if (peer.iceGatheringState === "complete") resolve(); }; }),
      new Promise((resolve) => { setTimeout(resolve, GATHER_MS); }),
    ]);
  }

  #fail(peer, reason) {
    if (this.#peer !== peer) return;
    this.stop();
    this.failed(reason);
  }
}
