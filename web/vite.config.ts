import { fileURLToPath } from "node:url";
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vitest/config";
import { fakeConsole } from "./dev/fake.ts";

const at = (path: string) => fileURLToPath(new URL(path, import.meta.url));

export default defineConfig(({ command }) => ({
  plugins: [svelte(), ...(command === "serve" && process.env.DARKROOM_FAKE ? [fakeConsole()] : [])],
  resolve: { alias: { "~": at("./src") } },
  build: {
    outDir: at("../src/darkroom/web"),
    emptyOutDir: true,
    // our CSP admits neither data: scripts nor styles in markup, so every asset is a file
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: "es2022",
  },
  server: {
    proxy: process.env.DARKROOM_FAKE ? undefined : { "^/(console|svc-[^/]+/v1|v1|docs|openapi.json|metrics)": process.env.DARKROOM ?? "http://127.0.0.1:8000" },
  },
  test: { include: ["tests/**/*.test.ts"], environment: "node" },
}));
