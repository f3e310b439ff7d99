/** A refusal of the server, in the one shape that all its errors have. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly name: string,
    readonly lines: string[],
    /** Seconds after which it is worth trying again; null where the server did not say. */
    readonly retryAfter: number | null = null,
    readonly requestId: string | null = null,
  ) {
    super(lines.join("\n") || name);
  }
}

/** A body of the server's error shape; anything else (a proxy's page, nothing at all) becomes a line of our own. */
export function errorOf(status: number, body: unknown, headers?: Headers): ApiError {
  const after = Number(headers?.get("retry-after") ?? NaN);
  const retryAfter = Number.isFinite(after) ? after : null;
  if (body && typeof body === "object" && "errors" in body && Array.isArray(body.errors)) {
    const { name, errors, id } = body as { name?: unknown; errors: unknown[]; id?: unknown };
    return new ApiError(status, String(name ?? "error"), errors.map(String), retryAfter, typeof id === "string" ? id : null);
  }
  return new ApiError(status, "error", [`The server answered with status ${status} and no reason. Its log may say more.`], retryAfter);
}

/** What to tell a person about any failure. */
export function linesOf(error: unknown): string[] {
  if (error instanceof ApiError) return error.lines;
  if (error instanceof TypeError) return ["The server cannot be reached. Is it still running? Try again once it is."];
  return [error instanceof Error ? error.message : String(error)];
}
