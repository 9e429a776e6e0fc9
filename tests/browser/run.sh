#!/usr/bin/env bash
# Open the built book in Chromium and test it. Installs what is missing where that is possible: Chromium and Node by apt,
# playwright-core and axe-core by npm into tests/browser/node_modules. Ends with 77 where they cannot be had.
set -eu
cd "$(dirname "$0")"

has_browser() { [ -n "${CHROMIUM:-}" ] || command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null 2>&1
has_node() { command -v node && command -v npm && [ "$(node -p 'process.versions.node.split(".")[0]')" -ge 20 ]; } >/dev/null 2>&1

wanted=()
has_browser || wanted+=(chromium)
has_node || wanted+=(nodejs npm)
if [ ${#wanted[@]} -gt 0 ]; then
  echo "== browser tests: installing ${wanted[*]}"
  sudo=$([ "$(id -u)" -eq 0 ] || echo sudo -n)
  { $sudo apt-get update -qq && $sudo apt-get install -y -qq --no-install-recommends "${wanted[@]}"; } >/dev/null 2>&1 || true
fi
if ! has_browser || ! has_node; then
  echo "browser tests need Chromium (or CHROMIUM=/path/to/it) and Node 20 or newer, which could not be installed here" >&2
  exit 77
fi
if [ ! -d node_modules/playwright-core ] || [ ! -d node_modules/axe-core ]; then
  npm install --no-package-lock --no-audit --no-fund --loglevel=error || { echo "npm could not install playwright-core and axe-core" >&2; exit 77; }
fi

if [ "${1:-}" = screenshots ]; then exec node screenshots.mjs; fi
exec node --test --test-concurrency=1 --test-reporter=spec pages.test.mjs explorer.test.mjs
