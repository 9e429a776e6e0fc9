import { chromium } from "playwright-core";
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
const root = process.cwd() + "/../../_build/html";
function* walk(d) { for (const f of readdirSync(d)) { const p = join(d, f); if (statSync(p).isDirectory()) { if (!/_static|mathjax|_sources|_modules/.test(f)) yield* walk(p); } else if (f.endsWith(".html")) yield p; } }
const b = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"] });
const c = await b.newContext({ viewport: { width: 390, height: 844 } });
for (const f of walk(root)) {
  const p = await c.newPage();
  await p.goto("file://" + f); 
  await p.waitForTimeout(300);
  if (await p.evaluate(() => !!window.MathJax)) await p.evaluate(() => window.MathJax.startup?.promise);
  const r = await p.evaluate(() => [...document.querySelectorAll("mjx-container[display=true]")].map(e => { const m = e.parentElement; return [e.scrollWidth, e.clientWidth, (e.closest('[id^="equation"]')||{}).id, e.getAttribute('aria-label')||'']; }).filter(a => a[0] > a[1] + 1));
  const t = await p.evaluate(() => [...document.querySelectorAll(".bd-content table")].map(e => [e.scrollWidth, e.parentElement.clientWidth, e.innerText.slice(0, 60).replace(/\s+/g, ' ')]).filter(a => a[0] > a[1] + 1));
  const o = await p.evaluate(() => document.documentElement.scrollWidth);
  if (r.length || t.length || o > 391) console.log(f.replace(root, ""), o > 391 ? "PAGE " + o : "", JSON.stringify(r), t.length ? "TABLES " + JSON.stringify(t) : "");
  await p.close();
}
await b.close();
