import { describe, expect, it } from "vitest";
import { onGrid, presets } from "~/playground/sizes";
import { denoise, stepsRun, strengthInWords } from "~/playground/strength";

const words = (control: number) => strengthInWords(control).replaceAll("\u00a0", " ");

describe("strength", () => {
  it("is said in both senses, which make a hundred", () => {
    expect(words(0.35)).toBe("keeps 35 % of the picture, redraws 65 %");
    expect(words(0)).toBe("keeps 0 % of the picture, redraws 100 %");
    expect(words(1)).toBe("keeps 100 % of the picture, redraws 0 %");
    expect(words(0.335)).toBe("keeps 34 % of the picture, redraws 66 %");
  });

  it("is the inverse of other tools' number", () => {
    expect(denoise(0.35)).toBe("0.65");
  });

  it("tells how many steps run, as the server counts", () => {
    expect(stepsRun(20, 0.35, "sdxl")).toBe(13);
    expect(stepsRun(30, 0.35, "sdxl")).toBe(19);
    expect(stepsRun(30, 0.35, "sd3")).toBe(20);
    expect(stepsRun(10, 0.95, "sdxl")).toBe(1);
    expect(stepsRun(30, 1, "sdxl")).toBe(0);
    expect(stepsRun(30, 0.9, "sdxl")).toBe(3);
  });
});

describe("sizes", () => {
  it("lie on the grid and within the model's", () => {
    for (const side of [256, 512, 1024]) {
      for (const { width, height } of presets(side, 1024)) expect([width % 64, height % 64, width <= 1024, height <= 1024, width >= 128]).toEqual([0, 0, true, true, true]);
    }
    expect(onGrid(500, 1024)).toBe(512);
    expect(onGrid(1, 1024)).toBe(128);
    expect(onGrid(5000, 1000)).toBe(960);
  });
});
