/** Days as columns of numbers, as the charts take them. Days on which nothing happened are not in the reply, but they are in the picture. */
import type { UsageRow } from "~/api/console-types";

const DAY = 86_400;

export interface Series {
  /** the beginnings of the days, in seconds; UTC, as the server counts them */
  days: number[];
  pictures: number[];
  errors: number[];
  p50: (number | null)[];
  p95: (number | null)[];
}

export function seriesOf(rows: UsageRow[], since: string, until: string): Series {
  const known = new Map(rows.map((row) => [row.group, row]));
  const days: number[] = [];
  for (let at = Date.parse(`${since}T00:00:00Z`) / 1000; at <= Date.parse(`${until}T00:00:00Z`) / 1000; at += DAY) days.push(at);
  const of = <T>(pick: (row: UsageRow) => T, absent: T): T[] =>
    days.map((at) => {
      const row = known.get(new Date(at * 1000).toISOString().slice(0, 10));
      return row ? pick(row) : absent;
    });
  const inSeconds = (value: number | null) => (value === null ? null : value / 1000);
  return { days, pictures: of((row) => row.pictures, 0), errors: of((row) => row.errors, 0), p50: of((row) => inSeconds(row.p50_ms), null), p95: of((row) => inSeconds(row.p95_ms), null) };
}

export interface Total {
  pictures: number;
  pixel_steps: number;
  requests: number;
  errors: number;
}

export function totalOf(rows: UsageRow[]): Total {
  const sum = (pick: (row: UsageRow) => number) => rows.reduce((total, row) => total + pick(row), 0);
  return { pictures: sum((row) => row.pictures), pixel_steps: sum((row) => row.pixel_steps), requests: sum((row) => row.requests), errors: sum((row) => row.errors) };
}

/** "12", "3,400", "1.2 M", "65 G": large counts as people say them. */
export function short(count: number): string {
  for (const [unit, size] of [["T", 1e12], ["G", 1e9], ["M", 1e6]] as const) {
    if (count >= size) return `${count >= 100 * size ? Math.round(count / size) : (count / size).toFixed(1)} ${unit}`;
  }
  return count.toLocaleString();
}
