import { deflateSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import { isPng, pngText } from "~/recall/png";
import { found } from "~/recall/recalled";

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const latin1 = (text: string) => Buffer.from(text, "latin1");
const utf8 = (text: string) => Buffer.from(text, "utf8");

/** A PNG of these chunks; check sums are zero, since nobody reads them. */
function png(...chunks: [type: string, data: Buffer][]): Uint8Array<ArrayBuffer> {
  const written = [...chunks, ["IEND", Buffer.alloc(0)] as const].flatMap(([type, data]) => {
    const head = Buffer.alloc(4);
    head.writeUInt32BE(data.length);
    return [head, latin1(type), data, Buffer.alloc(4)];
  });
  return new Uint8Array(Buffer.concat([Buffer.from(SIGNATURE), ...written]));
}

const tEXt = (keyword: string, text: string): [string, Buffer] => ["tEXt", latin1(`${keyword}\0${text}`)];
const zTXt = (keyword: string, text: string): [string, Buffer] => ["zTXt", Buffer.concat([latin1(`${keyword}\0\0`), deflateSync(latin1(text))])];
const iTXt = (keyword: string, text: string, compressed: boolean): [string, Buffer] => [
  "iTXt",
  Buffer.concat([latin1(`${keyword}\0`), Buffer.from([compressed ? 1 : 0, 0]), utf8("de\0Übersetzt\0"), compressed ? deflateSync(utf8(text)) : utf8(text)]),
];

describe("text of a PNG", () => {
  it("reads all three kinds of chunks", async () => {
    const text = await pngText(png(tEXt("a", "grün"), zTXt("b", "packed"), iTXt("c", "猫", false), iTXt("d", "a 猫 too", true)));
    expect([...text]).toEqual([["a", "grün"], ["b", "packed"], ["c", "猫"], ["d", "a 猫 too"]]);
  });

  it("keeps the first of equal keywords", async () => {
    expect((await pngText(png(tEXt("a", "1"), tEXt("a", "2")))).get("a")).toBe("1");
  });

  it("passes over chunks that are broken, and reads on", async () => {
    const broken: [string, Buffer][] = [["tEXt", latin1("no separator")], ["zTXt", latin1("z\0\0not zlib")], ["zTXt", latin1("z\0\x05method")]];
    expect([...(await pngText(png(...broken, tEXt("a", "1"))))]).toEqual([["a", "1"]]);
  });

  it("stops at the end of a file that was cut", async () => {
    const whole = png(tEXt("a", "1"), tEXt("b", "a longer text"));
    expect([...(await pngText(whole.subarray(0, whole.length - 20)))]).toEqual([["a", "1"]]);
  });

  it("does not unpack a bomb", async () => {
    expect((await pngText(png(zTXt("a", "0".repeat(9_000_000)), tEXt("b", "1")))).has("a")).toBe(false);
  });

  it("knows what is no PNG", async () => {
    expect(isPng(new Uint8Array([0xff, 0xd8, 0xff]))).toBe(false);
    expect((await pngText(new Uint8Array(3))).size).toBe(0);
  });
});

describe("parameters of a file", () => {
  it("are ours where our chunk is", async () => {
    const ours = { schema: 1, model: "demo-xl", prompt: "a cat", negative_prompt: "", seed: 7, width: 256, height: 128, steps: 20, steps_run: 13, cfg_scale: 7, control_strength: 0.35, strength: 0.65, versions: { darkroom: "0.1.0" } };
    const file = new Blob([png(tEXt("parameters", "a dog\nSteps: 1, Seed: 2, Size: 64x64"), tEXt("darkroom", JSON.stringify(ours)))]);
    expect(await found(file)).toEqual({
      by: "Darkroom",
      recalled: { model: "demo-xl", prompt: "a cat", negative_prompt: "", seed: 7, width: 256, height: 128, steps: 20, cfg_scale: 7, control_strength: 0.35 },
      beyond: [["Version", "0.1.0"]],
    });
  });

  it("fall back to the other chunk where ours is broken", async () => {
    const file = new Blob([png(tEXt("darkroom", "{"), tEXt("parameters", "a dog\nSteps: 20, Seed: 2, Size: 64x64"))]);
    expect((await found(file))?.recalled.prompt).toBe("a dog");
  });

  it("are null where there are none", async () => {
    expect(await found(new Blob([png()]))).toBeNull();
    expect(await found(new Blob(["text"]))).toBeNull();
  });
});
