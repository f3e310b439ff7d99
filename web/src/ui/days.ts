/** Days as a date field gives them ("2026-11-25", the person's own calendar) as the moments that a query takes. */

export function dayBegins(day: string | null | undefined): string | undefined {
  return moment(day, 0);
}

/** The first moment after the day: `until` leaves out its own moment, and a person means the whole day. */
export function dayEnds(day: string | null | undefined): string | undefined {
  return moment(day, 1);
}

function moment(day: string | null | undefined, later: number): string | undefined {
  const parts = /^(\d{4})-(\d\d)-(\d\d)$/.exec(day ?? "");
  return parts ? new Date(Number(parts[1]), Number(parts[2]) - 1, Number(parts[3]) + later).toISOString() : undefined;
}

/** The day of a moment in the person's calendar, as a date field takes it. */
export function dayOf(moment: Date): string {
  const two = (number: number) => String(number).padStart(2, "0");
  return `${moment.getFullYear()}-${two(moment.getMonth() + 1)}-${two(moment.getDate())}`;
}
