import { chromium } from "playwright-core";
const [, , out, ...list] = process.argv;
const b = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"] });
for (const item of list) {
  const [path, width, y = "0", height = "900", theme = "light"] = item.split(":");
  const c = await b.newContext({ viewport: { width: +width, height: 900 } });
  const p = await c.newPage();
  await p.goto("file://" + process.cwd() + "/../../_build/html/" + path);
  await p.evaluate((t) => { document.documentElement.dataset.theme = t; document.documentElement.dataset.mode = t; }, theme);
  if (await p.evaluate(() => !!window.MathJax)) await p.evaluate(() => window.MathJax.startup?.promise);
  await p.waitForTimeout(500);
  const full = await p.evaluate(() => document.documentElement.scrollHeight);
  await p.screenshot({ path: `${out}/${path.replace(/\W+/g, "_")}-${width}-${y}.png`, fullPage: true, clip: { x: 0, y: +y, width: +width, height: Math.min(+height, full - +y) } });
  console.log(path, full);
  await c.close();
}
await b.close();
