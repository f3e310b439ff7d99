/** Sizes offered for a model: its own square, and others of about as many pixels. Sides are multiples of 64. */
export interface Preset {
  name: string;
  width: number;
  height: number;
}

const SHAPES: [name: string, wide: number, high: number][] = [
  ["Square", 1, 1],
  ["Tall", 0.8125, 1.1875],
  ["Wide", 1.1875, 0.8125],
  ["Wider", 1.3125, 0.75],
  ["Small", 0.5, 0.5],
];

export function onGrid(side: number, most: number): number {
  return Math.min(most - (most % 64), Math.max(128, Math.round(side / 64) * 64));
}

export function presets(side: number, most: number): Preset[] {
  return SHAPES.map(([name, wide, high]) => ({ name, width: onGrid(side * wide, most), height: onGrid(side * high, most) }));
}
