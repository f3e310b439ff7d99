import { describe, expect, it } from "vitest";
import { fromA1111 } from "~/recall/a1111";

describe("AUTOMATIC1111's text", () => {
  it("is read whole", () => {
    const text = `a cat, (masterpiece:1.2)
on two lines <lora:pixel:0.8>
Negative prompt: blurry,
bad hands
Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 1234567890, Size: 512x768, Model hash: abc123, Model: "sd, xl: base", Denoising strength: 0.65, Version: v1.10.1`;
    expect(fromA1111(text)).toEqual({
      by: "AUTOMATIC1111",
      recalled: {
        prompt: "a cat, (masterpiece:1.2)\non two lines <lora:pixel:0.8>", negative_prompt: "blurry,\nbad hands",
        steps: 20, cfg_scale: 7.5, seed: 1234567890, width: 512, height: 768, model: "sd, xl: base", control_strength: 0.35,
      },
      beyond: [["Sampler", "Euler a"], ["Model hash", "abc123"], ["Version", "v1.10.1"]],
    });
  });

  it("without a negative prompt means an empty one", () => {
    expect(fromA1111("a cat\nSteps: 20, Seed: 1, Size: 64x64")?.recalled).toEqual({ prompt: "a cat", negative_prompt: "", steps: 20, seed: 1, width: 64, height: 64 });
  });

  it("may have settings only, as where prompts are left out", () => {
    expect(fromA1111("Steps: 20, Seed: 1, Size: 64x64")?.recalled.prompt).toBeUndefined();
  });

  it("keeps a last line with fewer than three pairs in the prompt", () => {
    expect(fromA1111("a sign that says\nPrice: 20, Size: large")?.recalled).toEqual({ prompt: "a sign that says\nPrice: 20, Size: large" });
  });

  it("knows its writer, and that seed -1 is none", () => {
    const read = fromA1111("a cat\nSteps: 20, CFG scale: 7, Seed: -1, Version: darkroom 0.1.0");
    expect(read?.by).toBe("Darkroom");
    expect(read?.recalled.seed).toBeUndefined();
  });

  it("is not other tools' JSON under the same keyword, nor nothing", () => {
    expect(fromA1111('{"prompt": "a cat"}')).toBeNull();
    expect(fromA1111(" ")).toBeNull();
    expect(fromA1111(undefined)).toBeNull();
  });
});
