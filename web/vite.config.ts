import { fileURLToPath } from "node:url";
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vitest/config";

const at = (path: string) => fileURLToPath(new URL(path, import.meta.url));

/** `npm run dev` shows the pages as they are written, with the data of the server that runs here. */
const server = process.env.DARKROOM ?? "http://127.0.0.1:8000";

export default defineConfig({
  plugins: [svelte()],
  resolve: { alias: { "~": at("./src") } },
  build: {
    outDir: at("../src/darkroom/web"),
    emptyOutDir: true,
    // our CSP admits neither data: scripts nor styles in markup, so every asset is a file
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: "es2022",
    // Swagger UI is one large file
    chunkSizeWarningLimit: 2000,
    rolldownOptions: { input: { index: at("./index.html"), docs: at("./docs.html") } },
  },
  server: {
    proxy: { "^/(console|svc-[^/]+/v1|v1|openapi.json|metrics)": server },
  },
  test: { include: ["tests/**/*.test.ts"], environment: "node" },
});
