import { describe, expect, it } from "vitest";
import { rowAt, rowsOf, step } from "~/gallery/rows";

/** Pictures on local days: seven of one, then two of the day before. */
const pictures = [...Array.from({ length: 7 }, (_, i) => ({ id: `a${i}`, created_at: new Date(2026, 10, 25, 20 - i).toISOString() })),
  ...Array.from({ length: 2 }, (_, i) => ({ id: `b${i}`, created_at: new Date(2026, 10, 24, 20 - i).toISOString() }))];

describe("the contact sheet", () => {
  const rows = rowsOf(pictures, 3, "day");

  it("begins a row anew with each day", () => {
    expect(rows.map((row) => (row.kind === "time" ? "time" : [row.from, row.to]))).toEqual(["time", [0, 3], [3, 6], [6, 7], "time", [7, 9]]);
  });

  it("has one line for a month where that is asked", () => {
    expect(rowsOf(pictures, 3, "month").filter((row) => row.kind === "time")).toHaveLength(1);
  });

  it("names every row differently, also where a day comes again", () => {
    const names = rowsOf([...pictures, { ...pictures[0]!, id: "again" }], 3, "day").map((row) => row.key);
    expect(new Set(names).size).toBe(names.length);
  });

  it("finds the row of a picture", () => {
    expect([0, 5, 6, 8, 9].map((index) => rowAt(rows, index))).toEqual([1, 2, 3, 5, -1]);
  });

  it("moves by the arrows over the lines of days, and stays within the shorter row", () => {
    expect(step(rows, 2, "down", 9)).toBe(5);
    expect(step(rows, 5, "down", 9)).toBe(6);
    expect(step(rows, 6, "down", 9)).toBe(7);
    expect(step(rows, 8, "up", 9)).toBe(6);
    expect(step(rows, 8, "down", 9)).toBe(8);
    expect([step(rows, 4, "first", 9), step(rows, 4, "last", 9), step(rows, 0, "left", 9), step(rows, 8, "right", 9)]).toEqual([3, 5, 0, 8]);
  });
});
