// Encoded pictures to drawable ones: JPEG one by one, H.264 through WebCodecs.

/** Whether this browser decodes the stream `codec` (such as avc1.42C01F) by WebCodecs. */
export async function decodes(codec) {
  if (typeof VideoDecoder === "undefined") return false; // absent outside of secure contexts, too
  try {
    return Boolean((await VideoDecoder.isConfigSupported({ codec })).supported);
  } catch {
    return false;
  }
}

export class Decoder {
  #video = null;
  #waiting = new Map(); // by timestamp: a decoder gives back nothing else of what went in
  #clock = 0;
  #needsKey = true;

  /** picture(frame, drawable): called in the order of the stream; the taker closes it. failed(): H.264 broke. */
  constructor(picture, failed) {
    this.picture = picture;
    this.failed = failed;
    this.codec = null; // WebCodecs' name of the H.264 stream
  }

  take(frame) {
    if (frame.codec === "h264") this.#takeVideo(frame);
    else this.#takeImage(frame);
  }

  async #takeImage(frame) {
    try {
      this.picture(frame, await createImageBitmap(new Blob([frame.payload], { type: "image/jpeg" })));
    } catch {
      // One broken picture: the next is whole.
    }
  }

  #takeVideo(frame) {
    const key = Boolean(frame.flags & 2);
    if (this.#video?.state !== "configured") this.#open();
    if (!this.#video || (this.#needsKey && !key)) return;
    this.#needsKey = false;
    const timestamp = ++this.#clock;
    this.#waiting.set(timestamp, frame);
    try {
      this.#video.decode(new EncodedVideoChunk({ type: key ? "key" : "delta", timestamp, data: frame.payload }));
    } catch (error) {
      this.#broke(error);
    }
  }

  #open() {
    this.#waiting.clear();
    this.#needsKey = true;
    try {
      this.#video = new VideoDecoder({
        output: (picture) => {
          const frame = this.#waiting.get(picture.timestamp);
          this.#waiting.delete(picture.timestamp);
          if (frame) this.picture(frame, picture);
          else picture.close();
        },
        error: (error) => this.#broke(error),
      });
      this.#video.configure({ codec: this.codec, optimizeForLatency: true });
    } catch (error) {
      this.#broke(error);
    }
  }

  #broke(error) {
    this.#video = null;
    this.#waiting.clear();
    this.failed(error);
  }
}
