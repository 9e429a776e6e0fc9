// What the browser tests share: where the built book is, a browser, and pages that are watched while they load.
import { existsSync, readFileSync, readdirSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const HERE = dirname(fileURLToPath(import.meta.url));
export const HTML = resolve(process.env.BOOK_HTML ?? join(HERE, "../../_build/html"));
export const SHOTS = resolve(process.env.BOOK_SCREENSHOTS ?? join(HERE, "../../_build/screenshots"));
export const AXE = readFileSync(join(HERE, "node_modules/axe-core/axe.min.js"), "utf8");

const FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync"];

/** Errors that every Jupyter Book page logs, and that mean nothing. */
const HARMLESS = [
  /THEBE_JS_URL/, // sphinx-thebe's script is on each page twice
  /fontawesome.*CORS policy|ERR_FAILED .*fontawesome/, // under file:// the theme may not preload its icons; it loads them a moment later
];

/** The system's Chromium; CHROMIUM names another one. */
export function browserPath() {
  const names = ["chromium", "chromium-browser", "google-chrome", "chrome"];
  const folders = (process.env.PATH ?? "").split(":");
  const found = process.env.CHROMIUM ?? folders.flatMap((f) => names.map((n) => join(f, n))).find(existsSync);
  if (!found) throw new Error("there is no Chromium on the PATH; install it, or set CHROMIUM to its path");
  return found;
}

export function launch() {
  if (!existsSync(join(HTML, "index.html"))) throw new Error(`there is no built book in ${HTML}: run make book first`);
  return chromium.launch({ executablePath: browserPath(), args: FLAGS });
}

/** Every page of the book, as paths within it; without Sphinx's own lists and the source views. */
export function pages(folder = HTML) {
  return readdirSync(folder, { recursive: true })
    .map(String)
    .filter((name) => name.endsWith(".html") && !/^(_static|_modules|_sources|explorer|mathjax|reports)\//.test(name))
    .sort();
}

/** One page for each kind: what the screenshots and the slower checks look at. */
export function kinds() {
  const wanted = {
    home: "book/intro.html", foundations: "book/foundations/decomposition.html", explorer: "book/explorer.html",
    notebook: "notebooks/quickstart.html", pictures: "notebooks/posterior_2d.html", course: "book/course/lab.html",
    api: "book/reference/api.html", table: "book/reference/reproducibility.html", notation: "book/notation.html",
    glossary: "book/glossary.html", references: "book/references.html", search: "search.html", claims: "notebooks/claims.html",
  };
  return Object.entries(wanted).filter(([, path]) => existsSync(join(HTML, path)));
}

export const url = (path) => pathToFileURL(join(HTML, path)).href;

/** Open a page of the book; its errors and its requests to anywhere but the disk are collected on the way. */
export async function open(context, path) {
  const page = await context.newPage();
  const seen = { errors: [], outside: [], missing: [] };
  const keep = (text) => HARMLESS.some((known) => known.test(text)) || seen.errors.push(text);
  page.on("console", (message) => message.type() === "error" && keep(`${message.text()} ${message.location().url}`));
  page.on("pageerror", (error) => keep(String(error)));
  page.on("request", (request) => /^(file|data|blob|about):/.test(request.url()) || seen.outside.push(request.url()));
  page.on("requestfailed", (request) => /^file:/.test(request.url()) && seen.missing.push(request.url()));
  await page.goto(url(path), { waitUntil: "load" });
  await page.evaluate(() => window.MathJax?.startup?.promise);
  return { page, seen };
}
