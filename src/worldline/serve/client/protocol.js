// The wire format of docs/protocol.md: what a picture message holds.
export const VERSION = 2;
export const CODECS = ["jpeg", "h264", "track"];
const HEADER_BYTES = 52, KIND_FRAME = 1;
export const FLAG = { first: 1, key: 2, still: 4, recording: 8, playing: 16 };

/** A binary message as a frame, or null where it is of another kind. Throws where it is of another version. */
export function readFrame(buffer) {
  const head = new DataView(buffer);
  if (buffer.byteLength < HEADER_BYTES || head.getUint8(0) !== VERSION) throw new Error("a picture of another protocol version");
  if (head.getUint8(1) !== KIND_FRAME) return null;
  return {
    codec: CODECS[head.getUint8(2)],
    flags: head.getUint8(3),
    generation: head.getUint32(4, true),
    index: head.getUint32(8, true),
    chunk: head.getUint32(12, true),
    seq: head.getUint32(16, true),
    keys: head.getUint16(20, true),
    move: [22, 23, 24].map((at) => head.getInt8(at) / 127),
    skipped: head.getUint16(26, true),
    yaw: head.getFloat32(28, true),
    serverMs: head.getFloat64(32, true),
    computeMs: head.getFloat32(40, true),
    queueMs: head.getFloat32(44, true),
    pitch: head.getFloat32(48, true),
    payload: new Uint8Array(buffer, HEADER_BYTES),
  };
}
