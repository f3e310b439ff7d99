import { describe, expect, it } from "vitest";
import { browserOf } from "~/account/agent";
import { ago, bytes, ms, seconds } from "~/ui/format";

describe("as people read it", () => {
  it("sizes", () => {
    expect([0, 999, 1000, 45_755_612, 123_456_789].map(bytes)).toEqual(["0 B", "999 B", "1.0 KB", "45.8 MB", "123 MB"]);
  });

  it("durations", () => {
    expect([0.42, 3, 9.96, 12.4, 95, 3700].map(seconds)).toEqual(["0.4 s", "3 s", "10.0 s", "12 s", "1 min 35 s", "1 h 1 min"]);
    expect([ms(null), ms(12.3), ms(2500)]).toEqual(["–", "12 ms", "2.5 s"]);
  });

  it("how long ago", () => {
    const now = Date.parse("2026-11-25T12:00:00Z");
    expect(["2026-11-25T11:59:30Z", "2026-11-25T11:30:00Z", "2026-11-25T02:00:00Z", "2026-11-22T12:00:00Z"].map((iso) => ago(iso, now))).toEqual(["just now", "30 min ago", "10 h ago", "3 d ago"]);
  });

  it("browsers", () => {
    expect(browserOf("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36")).toBe("Chrome on Linux");
    expect(browserOf("Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) Version/19.0 Mobile/15E148 Safari/604.1")).toBe("Safari on iPhone");
    expect(browserOf("something/1.0")).toBe("something/1.0");
  });
});
