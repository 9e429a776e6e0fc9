// Pictures of every kind of page, 1280 and 390 pixels wide, in both themes: `node screenshots.mjs` writes _build/screenshots.
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { kinds, launch, open, SHOTS } from "./book.mjs";

mkdirSync(SHOTS, { recursive: true });
const browser = await launch();
for (const [width, theme] of [[1280, "light"], [390, "light"], [1280, "dark"], [390, "dark"]]) {
  const context = await browser.newContext({ viewport: { width, height: width > 600 ? 900 : 844 } });
  for (const [name, path] of kinds()) {
    const { page } = await open(context, path);
    await page.evaluate((t) => { document.documentElement.dataset.theme = t; document.documentElement.dataset.mode = t; }, theme);
    if (name === "explorer") await page.waitForSelector('#xp-root[data-ready="true"]', { timeout: 90_000 });
    await page.waitForTimeout(300);
    await page.screenshot({ path: join(SHOTS, `${name}-${width}-${theme}.png`), fullPage: true });
    await page.close();
  }
  await context.close();
}
await browser.close();
console.log(`screenshots are in ${SHOTS}`);
