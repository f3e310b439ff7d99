/** The pages, in the order of the rail. Each is a file of its own and loaded when it is first opened. */
import type { Component } from "svelte";
import Activity from "@lucide/svelte/icons/activity";
import Boxes from "@lucide/svelte/icons/boxes";
import Images from "@lucide/svelte/icons/images";
import KeyRound from "@lucide/svelte/icons/key-round";
import ListTree from "@lucide/svelte/icons/list-tree";
import Play from "@lucide/svelte/icons/play";
import Server from "@lucide/svelte/icons/server";
import SlidersHorizontal from "@lucide/svelte/icons/sliders-horizontal";

export interface PageEntry {
  path: string;
  name: string;
  icon: Component<{ size?: number | string }>;
  load: () => Promise<{ default: Component }>;
}

export const PAGES: PageEntry[] = [
  { path: "/", name: "Start", icon: Play, load: () => import("~/pages/Start.svelte") },
  { path: "/playground", name: "Playground", icon: SlidersHorizontal, load: () => import("~/pages/Playground.svelte") },
  { path: "/gallery", name: "Gallery", icon: Images, load: () => import("~/pages/Gallery.svelte") },
  { path: "/requests", name: "Requests", icon: ListTree, load: () => import("~/pages/Requests.svelte") },
  { path: "/usage", name: "Usage", icon: Activity, load: () => import("~/pages/Usage.svelte") },
  { path: "/keys", name: "Keys", icon: KeyRound, load: () => import("~/pages/Keys.svelte") },
  { path: "/models", name: "Models", icon: Boxes, load: () => import("~/pages/Models.svelte") },
  { path: "/system", name: "System", icon: Server, load: () => import("~/pages/System.svelte") },
];

export const PATHS: ReadonlySet<string> = new Set(PAGES.map((page) => page.path));

export function pageAt(path: string): PageEntry | undefined {
  return PAGES.find((page) => page.path === (path.length > 1 ? path.replace(/\/$/, "") : path));
}
