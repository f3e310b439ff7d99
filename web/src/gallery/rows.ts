/** The contact sheet: pictures in rows, and a line before each day or month. Pure, so that its arithmetic can be tested. */
export type Row = { kind: "time"; key: string; at: string } | { kind: "frames"; key: string; from: number; to: number };

export interface Dated {
  id: string;
  created_at: string;
}

export type Span = "day" | "month";

export function rowsOf(pictures: readonly Dated[], columns: number, span: Span): Row[] {
  const rows: Row[] = [];
  let last = "";
  let from = 0;
  const close = (to: number) => {
    if (to > from) rows.push({ kind: "frames", key: pictures[from]!.id, from, to });
    from = to;
  };
  pictures.forEach((picture, index) => {
    const at = new Date(picture.created_at);
    const own = span === "day" ? at.toDateString() : `${at.getFullYear()} ${at.getMonth()}`;
    if (own !== last) {
      close(index);
      rows.push({ kind: "time", key: `time ${picture.id}`, at: picture.created_at });
      last = own;
    } else if (index - from === columns) close(index);
  });
  close(pictures.length);
  return rows;
}

export function rowAt(rows: readonly Row[], index: number): number {
  return rows.findIndex((row) => row.kind === "frames" && index >= row.from && index < row.to);
}

export type Direction = "left" | "right" | "up" | "down" | "first" | "last";

/** Where the arrow leads from a picture; up and down keep the column where the other row has it. */
export function step(rows: readonly Row[], index: number, direction: Direction, count: number): number {
  if (direction === "left") return Math.max(0, index - 1);
  if (direction === "right") return Math.min(count - 1, index + 1);
  const at = rowAt(rows, index);
  const here = rows[at];
  if (here?.kind !== "frames") return index;
  if (direction === "first") return here.from;
  if (direction === "last") return here.to - 1;
  const by = direction === "up" ? -1 : 1;
  for (let other = at + by; other >= 0 && other < rows.length; other += by) {
    const row = rows[other]!;
    if (row.kind === "frames") return Math.min(row.to - 1, row.from + index - here.from);
  }
  return index;
}
