// Every page: no errors, no requests to anywhere but the disk, nothing wider than a phone, no serious accessibility fault.
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { AXE, launch, open, pages } from "./book.mjs";

/** Faults of the theme's own markup, which this book cannot mend; each with its reason. Keep it short. */
const THEME = [
  /^label-content-name-mismatch: \.search-button-field/, // its label is "Search", its text "Search Ctrl+K"
  /^label-content-name-mismatch: (.* > )?summary/, // myst-nb labels "Show code cell source" with "Toggle hidden content"
  /^definition-list: #vaegap\\.\S+ > dl/, // Sphinx sets a long signature as a list of parameters without terms
  /^aria-required-children: \.citation-list/, // docutils: a list whose children are of the role doc-biblioentry
];

describe("every page", () => {
  let browser, wide, narrow;
  before(async () => {
    browser = await launch();
    wide = await browser.newContext({ viewport: { width: 1280, height: 900 } });
    narrow = await browser.newContext({ viewport: { width: 390, height: 844 } });
  });
  after(() => browser?.close());

  for (const path of pages().filter((name) => name !== "index.html")) { // that one only leads to the first page
    it(path, async () => {
      const { page, seen } = await open(wide, path);
      const wrong = { errors: seen.errors.slice(), outside: seen.outside.slice() };
      wrong.formulas = await page.$$eval("mjx-merror", (all) => all.map((e) => e.textContent));
      wrong.images = await page.$$eval("img", (all) => all.filter((i) => i.complete && !i.naturalWidth).map((i) => i.src));
      if (await page.$("#xp-root")) await page.waitForSelector('#xp-root[data-ready="true"]', { timeout: 90_000 });
      await page.$$eval("details", (all) => all.forEach((e) => { e.open = true; }));
      await page.evaluate(AXE);
      for (const theme of ["light", "dark"]) {
        await page.evaluate((name) => { document.documentElement.dataset.theme = name; document.documentElement.dataset.mode = name; }, theme);
        await page.waitForTimeout(350); // the theme fades its colours
        wrong[`accessibility, ${theme}`] = await faults(page);
      }
      await page.close();
      const small = await open(narrow, path);
      wrong["wider than 390 pixels"] = await overflow(small.page);
      await small.page.close();
      const found = Object.entries(wrong).filter(([, list]) => list.length);
      assert.deepEqual(Object.fromEntries(found), {});
    });
  }
});

/** Serious and critical violations as text, without those of the theme. */
async function faults(page) {
  const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"], preload: false }));
  return found.violations
    .filter((v) => ["serious", "critical"].includes(v.impact))
    .flatMap((v) => v.nodes.map((n) => `${v.id}: ${n.target.join(" ")} ${(n.any[0] ?? n.all[0] ?? n.none[0])?.message ?? ""}`))
    .filter((text) => !THEME.some((known) => known.test(text)));
}

/** What makes the page scroll sideways: boxes beyond the right edge whose own ancestors do not scroll. */
async function overflow(page) {
  return page.evaluate(() => {
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= width + 1) return [];
    const inside = (e) => { for (let p = e.parentElement; p; p = p.parentElement) if (/(auto|scroll|hidden|clip)/.test(getComputedStyle(p).overflowX)) return true; return false; };
    return [...document.querySelectorAll("main *")].filter((e) => e.getBoundingClientRect().right > width + 1 && !inside(e))
      .slice(0, 5).map((e) => `${e.tagName.toLowerCase()}.${e.className} ${Math.round(e.getBoundingClientRect().right)} ${e.textContent.trim().slice(0, 40)}`);
  });
}
