// The posterior explorer: agrees with PyTorch, reacts to mouse, touch and keyboard, and is quick.
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { launch, open } from "./book.mjs";

const PAGE = "book/explorer.html";
const TOLERANCE = 1e-3; // nats

describe("the posterior explorer", () => {
  let browser, page, seen;
  const check = () => page.$eval("#xp-root", (e) => JSON.parse(e.dataset.check));
  const pick = (i) => page.click(`#xp-digits button:nth-child(${i + 1})`);
  const reference = () => page.evaluate(() => window.VAEGAP_MODEL.reference);
  const arrive = () => page.waitForFunction(() => document.getElementById("xp-root").dataset.running === "false", null, { timeout: 60_000 });
  const ready = (where) => where.waitForSelector('#xp-root[data-ready="true"]', { timeout: 90_000 });

  before(async () => {
    browser = await launch();
    const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
    ({ page, seen } = await open(context, PAGE));
    await ready(page);
  });
  after(() => browser?.close());

  it("tabulates in a worker, even from the disk", async () => {
    assert.equal(await page.$eval("#xp-root", (e) => e.dataset.table), "worker");
    assert.deepEqual([seen.errors, seen.outside], [[], []]);
  });

  it("agrees with PyTorch on log p(x), L[q] and L[q*] of every digit", async () => {
    const torch = await reference();
    let worst = 0;
    for (let i = 0; i < torch.log_p.length; i++) {
      await pick(i);
      await page.click("#xp-optimise");
      await arrive();
      const ours = await check();
      assert.equal(ours.digit, i);
      for (const [name, value] of [["logp", torch.log_p[i]], ["elbo", torch.elbo[i]], ["best", torch.best[i]]]) {
        const off = Math.abs(ours[name] - value);
        worst = Math.max(worst, off);
        assert.ok(off < TOLERANCE, `digit ${i}: ${name} is ${ours[name]}, torch says ${value}`);
      }
      assert.ok(ours.q.every((v, k) => Math.abs(v - [...torch.q_mean[i], ...torch.q_sd[i]][k]) < 1e-4));
    }
    console.log(`largest disagreement with PyTorch: ${worst.toExponential(1)} nats`);
  });

  it("climbs: every step raises L[q*], and nothing else moves", async () => {
    await pick(19);
    let last = await check();
    assert.equal(last.best, last.elbo);
    for (let i = 0; i < 8; i++) {
      await page.click("#xp-step");
      const now = await check();
      assert.ok(now.best > last.best && now.best < now.logp);
      assert.deepEqual([now.logp, now.elbo, now.q], [last.logp, last.elbo, last.q]);
      last = now;
    }
    const shown = async (name) => parseFloat((await page.textContent(`#xp-${name}`)).replace("\u2212", "-"));
    const parts = [await shown("approximation"), await shown("amortization"), await shown("inference")];
    assert.ok(Math.abs(parts[0] + parts[1] - parts[2]) < 0.002 && parts.every((v) => v > 0));
    const widths = await page.$$eval(".xp-bar span", (all) => all.map((e) => e.getBoundingClientRect().width));
    assert.ok(Math.abs(widths[0] / (widths[0] + widths[1]) - parts[0] / parts[2]) < 0.02);
  });

  it("reaches the same top from the prior as from the encoder", async () => {
    await pick(4);
    await page.click("#xp-prior");
    const far = await check();
    assert.ok(far.best < far.elbo);
    assert.match(await page.textContent("#xp-warning"), /worse than the encoder/);
    await page.click("#xp-optimise");
    await arrive();
    assert.ok(Math.abs((await check()).best - (await reference()).best[4]) < TOLERANCE);
    await page.click("#xp-encoder");
    assert.equal((await check()).best, (await check()).elbo);
  });

  it("says so when q* sits on the smaller of two hills", async () => {
    await pick(11);
    await page.click("#xp-optimise");
    await arrive();
    assert.match(await page.textContent("#xp-warning"), /smaller hill/);
    assert.match(await page.textContent("#xp-status"), /arrived.*At this local optimum: approximation gap/);
  });

  it("moves q* by dragging and by sliders", async () => {
    await pick(8);
    const before = await check();
    await page.locator("#xp-map").scrollIntoViewIfNeeded();
    const box = await page.locator("#xp-map").boundingBox();
    await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
    await page.mouse.down();
    await page.mouse.move(box.x + box.width * 0.8, box.y + box.height * 0.25, { steps: 4 });
    await page.mouse.up();
    await page.waitForTimeout(200);
    const dragged = await check();
    assert.ok(dragged.star[0] > before.star[0] && dragged.star[1] > before.star[1] && dragged.best < before.best);
    await page.click("#xp-work summary");
    await page.focus("#xp-sd0");
    for (let i = 0; i < 20; i++) await page.keyboard.press("ArrowRight");
    assert.ok((await check()).star[2] > dragged.star[2] * 1.15);
  });

  it("drawing: noise on a clean digit costs log p(x), and the encoder more than q*", async () => {
    await pick(2);
    const clean = await check();
    await page.locator("#xp-pad").scrollIntoViewIfNeeded();
    const box = await page.locator("#xp-pad").boundingBox();
    const at = (r, c) => [box.x + ((c + 0.5) * box.width) / 28, box.y + ((r + 0.5) * box.height) / 28];
    await page.mouse.move(...at(5, 3));
    await page.mouse.down();
    await page.mouse.move(...at(12, 3), { steps: 8 });
    await page.mouse.up();
    await page.waitForTimeout(200);
    const noisy = await check();
    assert.equal(noisy.digit, -1);
    assert.ok(noisy.logp < clean.logp - 20, "a stroke in the margin is improbable");
    assert.ok(noisy.logp > noisy.elbo);
    await page.click("#xp-erase");
    await page.mouse.move(...at(4, 3));
    await page.mouse.down();
    await page.mouse.move(...at(13, 3), { steps: 18 });
    await page.mouse.up();
    await page.click("#xp-erase");
    await page.waitForTimeout(200);
    assert.ok(Math.abs((await check()).logp - clean.logp) < 1e-6, "erasing the stroke brings the digit back");
  });

  it("keyboard: a dot and a line on the pad", async () => {
    await page.click("#xp-blank");
    const blank = await check();
    await page.focus("#xp-pad");
    await page.keyboard.press("Space");
    await page.waitForTimeout(150);
    const dot = await check();
    assert.ok(dot.logp !== blank.logp);
    for (let i = 0; i < 6; i++) await page.keyboard.press("Shift+ArrowDown");
    await page.waitForTimeout(150);
    assert.ok((await check()).logp !== dot.logp);
  });

  it("redraws in less than 50 ms", async () => {
    const times = [];
    for (let i = 0; i < 20; i++) {
      await pick(i);
      times.push((await check()).ms);
      await page.click("#xp-step");
      times.push((await check()).ms);
    }
    times.sort((a, b) => a - b);
    const median = times[times.length >> 1];
    console.log(`redraw: median ${median} ms, 90 % within ${times[Math.floor(0.9 * times.length)]} ms`);
    assert.ok(median < 50, `the median of ${times.length} redraws is ${median} ms`);
  });

  it("tells screen readers what happened", async () => {
    await pick(0);
    assert.match(await page.textContent("#xp-status"), /^A 0\. Inference gap/);
    assert.match(await page.textContent("#xp-warning"), /not at its top/);
    await page.click("#xp-optimise");
    await page.waitForFunction(() => /arrived.*Approximation gap/.test(document.querySelector("#xp-status").textContent));
    assert.equal(await page.textContent("#xp-warning"), "");
    assert.equal(await page.getAttribute("#xp-digits button:nth-child(1)", "aria-pressed"), "true");
  });

  it("never says what is no longer so, however the picture was changed", async () => {
    const status = () => page.textContent("#xp-status");
    const spoken = (start) => page.waitForFunction((w) => document.querySelector("#xp-status").textContent.startsWith(w), start);
    const agrees = async () => {
      const { logp, elbo } = await check(), said = parseFloat(/Inference gap ([\d.]+)/.exec(await status())[1]);
      assert.ok(Math.abs(said - (logp - elbo)) < 0.006, `${await status()}; but the gap is ${logp - elbo}`);
    };
    if ((await page.getAttribute("#xp-erase", "aria-pressed")) === "true") await page.click("#xp-erase");
    await pick(4);
    await agrees();
    await page.click("#xp-blank");
    await agrees();
    await page.evaluate(() => { // what the line says right after each change, before anything else can happen
      window.heard = [];
      for (const kind of ["keydown", "pointerdown", "input"]) {
        addEventListener(kind, () => heard.push(document.querySelector("#xp-status").textContent));
      }
    });
    const heard = () => page.evaluate(() => heard.splice(0));
    const box = await page.locator("#xp-pad").boundingBox();
    await page.focus("#xp-pad");
    await page.keyboard.press("Space");
    await page.mouse.click(box.x + 20, box.y + 30);
    await page.keyboard.press("Shift+ArrowLeft");
    const after = await heard();
    assert.ok(after.length >= 3 && after.at(-1) === "" && after[0] === "", JSON.stringify(after));
    await spoken("Image changed.");
    await agrees();
    await pick(4);
    await page.$eval("#xp-work details", (e) => { e.open = true; });
    await page.focus("#xp-sd0");
    await page.keyboard.press("ArrowLeft");
    assert.equal((await heard()).at(-1), "");
    await spoken("q* was moved.");
    await agrees();
    await page.keyboard.press("ArrowRight");
    await pick(6); // what was about to be said of the other digit is not said
    await page.waitForTimeout(700);
    assert.match(await status(), /^A 3\. Inference gap/);
    await page.click("#xp-optimise");
    await arrive();
    assert.match(await status(), /arrived/);
  });

  it("touch: draws on a phone, where the page has no worker", async () => {
    const phone = await browser.newContext({ viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2 });
    await phone.addInitScript(() => { delete window.Worker; });
    const small = await open(phone, PAGE);
    await ready(small.page);
    assert.equal(await small.page.$eval("#xp-root", (e) => e.dataset.table), "slices");
    const before = await small.page.$eval("#xp-root", (e) => JSON.parse(e.dataset.check).logp);
    await small.page.locator("#xp-pad").scrollIntoViewIfNeeded();
    const box = await small.page.locator("#xp-pad").boundingBox();
    await small.page.touchscreen.tap(box.x + 12, box.y + 12);
    await small.page.waitForTimeout(400);
    assert.ok((await small.page.$eval("#xp-root", (e) => JSON.parse(e.dataset.check).logp)) < before);
    await phone.close();
  });

  it("shows its figure where scripts do not run", async () => {
    const plain = await browser.newContext({ javaScriptEnabled: false });
    const still = await plain.newPage();
    await still.goto(page.url());
    await still.locator('img[src*="explorer"]').scrollIntoViewIfNeeded();
    assert.ok(await still.isVisible('img[src*="explorer"]'));
    assert.ok(!(await still.isVisible("#xp-root")));
    assert.ok(await still.getByText("The explorer needs scripts").isVisible());
    await plain.close();
  });
});
