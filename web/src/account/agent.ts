/** "Firefox on Linux", from a User-Agent. It only has to tell one's own sessions apart. */
export function browserOf(agent: string): string {
  const browser = firstOf(agent, [["Edg/", "Edge"], ["OPR/", "Opera"], ["Firefox/", "Firefox"], ["Chrome/", "Chrome"], ["Safari/", "Safari"], ["curl/", "curl"]]);
  const system = firstOf(agent, [["iPhone", "iPhone"], ["iPad", "iPad"], ["Android", "Android"], ["Windows", "Windows"], ["Mac OS X", "Mac"], ["Linux", "Linux"]]);
  if (!browser) return agent.slice(0, 40) || "an unknown browser";
  return system ? `${browser} on ${system}` : browser;
}

function firstOf(text: string, marks: [mark: string, name: string][]): string | undefined {
  return marks.find(([mark]) => text.includes(mark))?.[1];
}
