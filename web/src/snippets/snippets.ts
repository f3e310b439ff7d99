/** The same request in four languages, ready to be pasted. */
import type { Ask } from "~/api/types";

export type Language = "curl" | "Python" | "JavaScript" | "CLI";
export const LANGUAGES: Language[] = ["curl", "Python", "JavaScript", "CLI"];

export interface Shape {
  /** SERVICE_ID: the whole base address */
  service: string;
  /** the key itself; without it the snippet reads the environment's API_KEY */
  key?: string;
  ask: Partial<Ask> & { prompt: string };
  /** how the command line is called on the server */
  commands?: { generate: string; edit: string };
  /** file name of the picture to begin from: image to image */
  image?: string;
}

export function snippet(language: Language, shape: Shape): string {
  return { curl, Python: python, JavaScript: javascript, CLI: cli }[language](shape);
}

/** The fields in the order of the documentation, without those that only the Playground needs. */
function fieldsOf({ ask, image }: Shape): [string, string | number][] {
  const names = ["model", "prompt", "negative_prompt", "width", "height", "steps", "cfg_scale", "seed", ...(image ? ["control_strength"] : [])] as const;
  const given = ask as Record<string, string | number | undefined>;
  return names.filter((name) => given[name] !== undefined && given[name] !== "").map((name) => [name, given[name]!]);
}

/** One word for a POSIX shell. */
export function quoted(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

/** Without `--fail-with-body` curl would write an error into the picture's file and call it a success. */
function curl(shape: Shape): string {
  const { service, key, image } = shape;
  const bearer = key ? `-H ${quoted(`Authorization: Bearer ${key}`)}` : `-H "Authorization: Bearer $API_KEY"`;
  if (image) {
    const parts = fieldsOf(shape).map(([name, value]) => `  --form-string ${quoted(`${name}=${value}`)}`);
    return [`curl --fail-with-body ${quoted(`${service}/v1/images/control`)}`, `  ${bearer}`, `  -F ${quoted(`image=@${image}`)}`, ...parts, "  -o picture.png"].join(" \\\n");
  }
  const body = JSON.stringify(Object.fromEntries(fieldsOf(shape)));
  return [`curl --fail-with-body ${quoted(`${service}/v1/images/generate`)}`, `  ${bearer}`, `  -H 'Content-Type: application/json'`, `  -d ${quoted(body)}`, "  -o picture.png"].join(" \\\n");
}

/** JSON strings are Python's and JavaScript's too. */
const literal = (value: string | number) => JSON.stringify(value);

function python(shape: Shape): string {
  const { service, key, image } = shape;
  const fields = fieldsOf(shape).map(([name, value]) => `    ${literal(name)}: ${literal(value)},`);
  return [
    ...(key ? [] : ["import os"]),
    "import requests  # pip install requests",
    "",
    "reply = requests.post(",
    `    ${literal(`${service}/v1/images/${image ? "control" : "generate"}`)},`,
    `    headers={"Authorization": ${key ? literal(`Bearer ${key}`) : `"Bearer " + os.environ["API_KEY"]`}},`,
    ...(image ? [`    files={"image": open(${literal(image)}, "rb")},`, "    data={"] : ["    json={"]),
    ...fields.map((line) => `    ${line}`),
    "    },",
    ")",
    "assert reply.ok, reply.text",
    `open("picture.png", "wb").write(reply.content)`,
    `print("seed", reply.headers["Seed"])`,
  ].join("\n");
}

function javascript(shape: Shape): string {
  const { service, key, image } = shape;
  const bearer = key ? literal(`Bearer ${key}`) : '"Bearer " + process.env.API_KEY';
  const fields = fieldsOf(shape);
  const body = image
    ? ["const body = new FormData();", `body.set("image", new Blob([await readFile(${literal(image)})]));`, ...fields.map(([name, value]) => `body.set(${literal(name)}, ${literal(value)});`)]
    : ["const body = JSON.stringify({", ...fields.map(([name, value]) => `  ${name}: ${literal(value)},`), "});"];
  const headers = image ? `{ Authorization: ${bearer} }` : `{ Authorization: ${bearer}, "Content-Type": "application/json" }`;
  return [
    "// Node 18 or newer: save as picture.mjs, then: node picture.mjs",
    `const { ${image ? "readFile, " : ""}writeFile } = await import("node:fs/promises");`,
    ...body,
    `const reply = await fetch(${literal(`${service}/v1/images/${image ? "control" : "generate"}`)}, {`,
    `  method: "POST",`,
    `  headers: ${headers},`,
    "  body,",
    "});",
    "if (!reply.ok) throw new Error(await reply.text());",
    `await writeFile("picture.png", Buffer.from(await reply.arrayBuffer()));`,
    `console.log("seed", reply.headers.get("Seed"));`,
  ].join("\n");
}

function cli(shape: Shape): string {
  const { ask, image } = shape;
  const options = [...fieldsOf(shape).filter(([name]) => name !== "prompt").map(([name, value]) => `  --${name.replaceAll("_", "-")} ${quoted(String(value))}`), "  -o picture.png"];
  const verb = (image ? shape.commands?.edit : shape.commands?.generate) ?? `darkroom ${image ? "edit" : "generate"}`;
  const words = [...(image ? [quoted(image)] : []), quoted(ask.prompt)].join(" ");
  // a prompt that begins with a dash would be taken for an option, unless it comes after `--`
  const lines = ask.prompt.startsWith("-") ? [verb, ...options, `  -- ${words}`] : [`${verb} ${words}`, ...options];
  return lines.join(" \\\n");
}
