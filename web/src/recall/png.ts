/** The text that a PNG carries: chunks tEXt, zTXt and iTXt (PNG, third edition, section 11.3.3). No pixel is decoded. */

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
/** Text of more than this is none of ours: a file may be made to swell when it is unpacked. */
const MAX_TEXT = 4_000_000;

const latin1 = new TextDecoder("latin1");
const utf8 = new TextDecoder("utf-8");

export function isPng(bytes: Uint8Array): boolean {
  return SIGNATURE.every((byte, i) => bytes[i] === byte);
}

/** Keyword to text, in the order of the file; the first of equal keywords wins. Broken chunks are passed over. */
export async function pngText(bytes: Uint8Array): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  if (!isPng(bytes)) return found;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    const type = latin1.decode(bytes.subarray(at + 4, at + 8));
    const data = bytes.subarray(at + 8, at + 8 + length);
    if (type === "IEND" || data.length < length) break;
    const text = await textOf(type, data).catch(() => undefined);
    if (text && !found.has(text[0])) found.set(...text);
    at += 12 + length;
  }
  return found;
}

async function textOf(type: string, data: Uint8Array): Promise<[string, string] | undefined> {
  const [keyword, rest] = until0(data);
  switch (type) {
    case "tEXt":
      return [latin1.decode(keyword), latin1.decode(rest)];
    case "zTXt":
      // the byte after the keyword is the method, of which only 0, zlib, is defined
      return rest[0] === 0 ? [latin1.decode(keyword), latin1.decode(await inflated(rest.subarray(1)))] : undefined;
    case "iTXt": {
      const [compressed, method] = [rest[0], rest[1]];
      const [, afterLanguage] = until0(rest.subarray(2));
      const [, text] = until0(afterLanguage);
      if (compressed === 1 && method !== 0) return undefined;
      return [latin1.decode(keyword), utf8.decode(compressed ? await inflated(text) : text)];
    }
  }
  return undefined;
}

/** What stands before the first zero byte, and after it. */
function until0(data: Uint8Array): [Uint8Array, Uint8Array] {
  const at = data.indexOf(0);
  if (at < 0) throw new Error("a text chunk without its separator");
  return [data.subarray(0, at), data.subarray(at + 1)];
}

async function inflated(data: Uint8Array): Promise<Uint8Array> {
  const stream = new Blob([data as BlobPart]).stream().pipeThrough(new DecompressionStream("deflate"));
  const chunks: Uint8Array[] = [];
  let size = 0;
  for (let reader = stream.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    size += value.length;
    if (size > MAX_TEXT) {
      await reader.cancel();
      throw new Error("a text chunk that is too long");
    }
    chunks.push(value);
  }
  const whole = new Uint8Array(size);
  chunks.reduce((at, chunk) => (whole.set(chunk, at), at + chunk.length), 0);
  return whole;
}
