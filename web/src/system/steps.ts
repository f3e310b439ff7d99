/** The cost model's table: seconds of a step by model and size, for so many pictures at once. */
export interface StepRow {
  model: string;
  size: string;
  /** by the number of rows in the batch */
  seconds: Record<number, number>;
  decode: number | null;
}

export function stepTable(costs: Record<string, Record<string, number>>): { counts: number[]; rows: StepRow[] } {
  const counts = new Set<number>();
  const rows = Object.entries(costs).map(([name, times]) => {
    const [model = "", width = "", height = ""] = name.split(" ");
    const seconds = Object.fromEntries(Object.entries(times).filter(([key]) => /^\d+$/.test(key)));
    for (const key of Object.keys(seconds)) counts.add(Number(key));
    return { model, size: `${width} × ${height}`, pixels: Number(width) * Number(height), seconds, decode: times.decode ?? null };
  });
  rows.sort((a, b) => a.model.localeCompare(b.model) || a.pixels - b.pixels);
  return { counts: [...counts].sort((a, b) => a - b), rows };
}

/** "21 ms", "1.3 s": step times are short, and their small parts count. */
export function stepTime(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds >= 1) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
  return `${seconds < 0.01 ? (seconds * 1000).toFixed(1) : Math.round(seconds * 1000)} ms`;
}
