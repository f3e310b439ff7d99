/** The strength of image to image in words. Ours counts what is kept; most tools count what is redrawn, so both are said. */

/** "keeps 35 % of the picture, redraws 65 %"; number and sign stay together where a line ends */
export function strengthInWords(control: number): string {
  const kept = Math.round(control * 100);
  return `keeps ${kept}\u00a0% of the picture, redraws ${100 - kept}\u00a0%`;
}

/** How many of the steps run: SDXL floors what is left, SD 3.x floors what is left out. Rounded first, for binary fractions. */
export function stepsRun(steps: number, control: number, family: string): number {
  if (control >= 1) return 0;
  const exact = (value: number) => Math.round(value * 1e6) / 1e6;
  return family === "sd3" ? steps - Math.floor(exact(steps * control)) : Math.max(1, Math.floor(exact(steps * (1 - control))));
}

/** Other tools' number for the same thing. */
export function denoise(control: number): string {
  return (1 - control).toFixed(2);
}
