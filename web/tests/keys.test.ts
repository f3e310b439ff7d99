import { describe, expect, it } from "vitest";
import { limitsInWords, masked, stateOf } from "~/keys/masked";
import { moving, stateOf as standing } from "~/models/state";
import type { ModelState } from "~/api/console-types";

describe("keys", () => {
  it("are shown by what does not let anybody in", () => {
    expect(masked({ public_id: "gdjhgrs2ab8j", last4: "3521" })).toBe("dk_gdjhgrs2ab8j_…3521");
  });

  it("are active, expired or revoked", () => {
    const now = Date.parse("2026-11-25T12:00:00Z");
    expect(stateOf({ revoked_at: null, expires_at: null }, now)).toBe("active");
    expect(stateOf({ revoked_at: null, expires_at: "2026-11-25T11:59:59Z" }, now)).toBe("expired");
    expect(stateOf({ revoked_at: "2026-11-01T00:00:00Z", expires_at: "2026-11-20T00:00:00Z" }, now)).toBe("revoked");
  });

  it("tell their limits in short; 0 is none, and a weight of 1 is usual", () => {
    expect(limitsInWords(null)).toBe("the server's");
    expect(limitsInWords({ concurrent: 0, queued: 0, pictures_per_minute: 0, pixel_steps_per_day: 0, weight: 1 })).toBe("none");
    expect(limitsInWords({ concurrent: 2, queued: 0, pictures_per_minute: 10, pixel_steps_per_day: 5e8, weight: 2 })).toBe("2 at once, 10 a minute, 500 M pixel-steps a day, weight 2");
  });
});

describe("models", () => {
  const model = (more: Partial<ModelState>) => ({ installed: true, served: true, loaded: false, loading: false, preparing: false, pull: null, license: { accepted: true }, ...more }) as ModelState;

  it("say where they stand", () => {
    const texts = [model({ loaded: true }), model({ loaded: true, preparing: true }), model({ loading: true }), model({}), model({ served: false }), model({ installed: false, served: false }),
      model({ installed: false, pull: { part: 0.4, error: null } }), model({ installed: false, pull: { part: 0.4, error: "stopped" } }), model({ installed: false, pull: { part: 0, error: "gated" } })].map((one) => standing(one).text);
    expect(texts).toEqual(["loaded", "loaded, getting ready (first time only)", "loading", "ready to load", "not served", "not here", "downloading", "download stopped", "download failed"]);
  });

  it("are looked at again soon while something goes on", () => {
    expect(moving([model({}), model({ pull: { part: 0.4, error: "stopped" } })])).toBe(false);
    expect(moving([model({}), model({ pull: { part: 0.4, error: null } })])).toBe(true);
    expect(moving([model({ loaded: true, preparing: true })])).toBe(true);
  });
});
