import { describe, expect, it } from "vitest";
import { stepTable, stepTime } from "~/system/steps";
import { dayBegins, dayEnds, dayOf } from "~/ui/days";
import { seriesOf, short, totalOf } from "~/usage/series";

const row = (group: string, pictures: number) => ({ group, pictures, pixel_steps: pictures * 1000, requests: pictures + 1, errors: 1, cancelled: 0, p50_ms: 2000, p95_ms: null });

describe("usage", () => {
  const rows = [row("2026-11-23", 4), row("2026-11-25", 6)];

  it("has every day, those too on which nothing happened", () => {
    const series = seriesOf(rows, "2026-11-22", "2026-11-25");
    expect(series.days.map((at) => new Date(at * 1000).getUTCDate())).toEqual([22, 23, 24, 25]);
    expect(series.pictures).toEqual([0, 4, 0, 6]);
    expect(series.p50).toEqual([null, 2, null, 2]);
    expect(series.p95).toEqual([null, null, null, null]);
  });

  it("sums", () => {
    expect(totalOf(rows)).toEqual({ pictures: 10, pixel_steps: 10_000, requests: 12, errors: 2 });
  });

  it("says large counts shortly", () => {
    expect([7, 1_250_000, 3.8e9, 450e9].map(short)).toEqual(["7", "1.3 M", "3.8 G", "450 G"]);
  });
});

describe("days of a date field", () => {
  it("are the person's own, and whole", () => {
    expect(dayBegins("2026-11-25")).toBe(new Date(2026, 10, 25).toISOString());
    expect(dayEnds("2026-11-30")).toBe(new Date(2026, 11, 1).toISOString());
    expect([dayBegins(""), dayBegins("25.11."), dayEnds(undefined)]).toEqual([undefined, undefined, undefined]);
    expect(dayOf(new Date(2026, 0, 5))).toBe("2026-01-05");
  });
});

describe("the table of step times", () => {
  it("has a column for each number of rows, and sizes in their order", () => {
    const { counts, rows } = stepTable({ "demo-xl 512 512": { "1": 0.09 }, "demo-xl 256 256": { "8": 0.1, "2": 0.03, decode: 0.01 } });
    expect(counts).toEqual([1, 2, 8]);
    expect(rows.map((row) => [row.size, row.seconds[2] ?? null, row.decode])).toEqual([["256 × 256", 0.03, 0.01], ["512 × 512", null, null]]);
  });

  it("keeps small parts", () => {
    expect([0.0083, 0.021, 1.234, 12.34, undefined].map(stepTime)).toEqual(["8.3 ms", "21 ms", "1.23 s", "12.3 s", "–"]);
  });
});
