import { execFileSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { LANGUAGES, quoted, snippet } from "~/snippets/snippets";

const service = "http://127.0.0.1:8000/svc-7f3k2m9q";
const ask = { model: "demo-xl", prompt: `it's a "dog" $HOME \\ \`x\` 猫`, steps: 20, width: 256, height: 256, seed: 7, cfg_scale: 7 };

/** What a shell makes of a command: its words, one a line. */
function wordsOf(command: string): string[] {
  return execFileSync("bash", ["-c", `API_KEY=dk_env; words() { printf '%s\\0' "$@"; }; ${command.replace(/^(curl|darkroom)/, "words")}`], { encoding: "utf8" }).split("\0").slice(0, -1);
}

describe("snippets", () => {
  it("in curl survive the shell, whatever the prompt", () => {
    const words = wordsOf(snippet("curl", { service, key: "dk_a", ask }));
    expect(words.slice(0, 2)).toEqual(["--fail-with-body", `${service}/v1/images/generate`]);
    expect(words).toContain("Authorization: Bearer dk_a");
    expect(JSON.parse(words[words.indexOf("-d") + 1]!)).toEqual(ask);
  });

  it("read the key from the environment where it is not known", () => {
    expect(wordsOf(snippet("curl", { service, ask }))).toContain("Authorization: Bearer dk_env");
    expect(snippet("Python", { service, ask })).toContain('os.environ["API_KEY"]');
    expect(snippet("JavaScript", { service, ask })).toContain("process.env.API_KEY");
  });

  it("send a picture as a form", () => {
    const words = wordsOf(snippet("curl", { service, key: "k", ask: { ...ask, control_strength: 0.35 }, image: "my input.png" }));
    expect(words).toContain("image=@my input.png");
    expect(words).toContain(`prompt=${ask.prompt}`);
    expect(words).toContain("control_strength=0.35");
    expect(words.slice(0, 2)).toEqual(["--fail-with-body", `${service}/v1/images/control`]);
  });

  it("in the CLI keep prompts that look like options", () => {
    expect(wordsOf(snippet("CLI", { service, ask: { prompt: "a dog", steps: 20 } }))).toEqual(["generate", "a dog", "--steps", "20", "-o", "picture.png"]);
    expect(wordsOf(snippet("CLI", { service, ask: { prompt: "--a dog", seed: 1 } }))).toEqual(["generate", "--seed", "1", "-o", "picture.png", "--", "--a dog"]);
    expect(wordsOf(snippet("CLI", { service, ask: { prompt: "-x", seed: 1 }, image: "in.png" }))).toEqual(["edit", "--seed", "1", "-o", "picture.png", "--", "in.png", "-x"]);
  });

  it("in the CLI begin with where the command lies on the server", () => {
    const commands = { generate: "'/srv/my room/.venv/bin/darkroom' generate --data-dir /srv/data", edit: "x edit" };
    const text = snippet("CLI", { service, commands, ask: { prompt: "a dog", seed: 1 } });
    expect(text).toBe(["'/srv/my room/.venv/bin/darkroom' generate --data-dir /srv/data 'a dog'", "  --seed 1", "  -o picture.png"].join(" \\\n"));
  });

  it("are valid Python and JavaScript", () => {
    for (const image of [undefined, "in.png"]) {
      const python = snippet("Python", { service, key: "k", ask, image });
      execFileSync("python3", ["-c", "import ast, sys; ast.parse(sys.stdin.read())"], { input: python });
      execFileSync(process.execPath, ["--check", "--input-type=module", "-"], { input: snippet("JavaScript", { service, key: "k", ask, image }) });
    }
  });

  it("leave out what was not asked for", () => {
    for (const language of LANGUAGES) expect(snippet(language, { service, ask: { prompt: "a dog", negative_prompt: "" } })).not.toContain("negative");
  });
});

it("words of a shell are quoted only where they must", () => {
  expect(quoted("a-b_c.png")).toBe("a-b_c.png");
  expect(quoted("it's")).toBe(`'it'\\''s'`);
  expect(quoted("")).toBe("''");
});
