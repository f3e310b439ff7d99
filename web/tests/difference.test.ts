import { describe, expect, it } from "vitest";
import { alike, difference } from "~/recall/difference";
import { recalledOf } from "~/recall/recalled";

const form = { prompt: "a dog", negative_prompt: "", model: "demo-xl", width: 512, height: 512, steps: 30, cfg_scale: 7, seed: 5, control_strength: 0.35 };
const bounds = { models: ["demo-xl", "demo-3.5"], steps: [10, 50] as [number, number], max_side: 1024 };

describe("difference against the form", () => {
  it("names what differs, in the form's order, and nothing else", () => {
    const told = { seed: 9, prompt: "a cat", steps: 30 };
    expect(difference(form, told, bounds).map(({ field, before, after, value }) => [field, before, after, value])).toEqual([["prompt", "a dog", "a cat", "a cat"], ["seed", "5", "9", 9]]);
    expect(alike(form, told)).toEqual(["Steps"]);
  });

  it("takes the nearest that the form can hold, and says so", () => {
    const [width, steps] = difference(form, { width: 2000, steps: 150 }, bounds);
    expect([width?.value, steps?.value]).toEqual([1024, 50]);
    expect(width?.note).toContain("2000");
  });

  it("is silent where the nearest is what the form has", () => {
    expect(difference(form, { width: 520, height: 512 }, bounds)).toEqual([]);
  });

  it("bars models of other tools and seeds out of range", () => {
    const barred = difference(form, { model: "dreamshaper", seed: 2 ** 40 }, bounds);
    expect(barred.map((one) => [one.field, one.barred])).toEqual([["model", true], ["seed", true]]);
  });

  it("says strength in words", () => {
    expect(difference(form, { control_strength: 0.8 }, bounds)[0]?.after).toBe("keeps 80 %");
  });
});

it("parameters of anything are taken by name and type", () => {
  expect(recalledOf({ prompt: "a", seed: "7", width: "wide", height: null, steps: 20, steps_run: 3, other: 1 })).toEqual({ prompt: "a", seed: 7, steps: 20 });
});
