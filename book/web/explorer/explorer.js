/* The posterior explorer's page: pictures, buttons and numbers around core.js. */
(function () {
  "use strict";
  var root = document.getElementById("xp-root"), data = window.VAEGAP_MODEL, core = window.VaegapCore;
  if (!root || !data || !core) return;
  var $ = function (id) { return document.getElementById("xp-" + id); };
  var model = core.model(data), digits = core.bits(data.images, model.pixels), table = core.emptyTable(model);
  var SIDE = 28, HEAT = 144; // pixels of an image; pixels of the heat map
  var state = { x: new Uint8Array(model.pixels), digit: -1, view: "close", running: false, trail: [], steps: 0 };
  var joint = new Float64Array(core.SIDE * core.SIDE), heat = document.createElement("canvas");
  heat.width = heat.height = HEAT;

  /* ---- the table: in a worker where the browser allows one, else in slices between frames ---------------------- */

  function prepare(done) {
    var worker = null;
    try {
      var text = "var core=(" + core.factory.toString() + ")();onmessage=function(e){var m=e.data;" +
        "for(var i=0;i<core.SIDE;i+=4){var p=core.tabulate(m,i,Math.min(core.SIDE,i+4));postMessage(p,[p.h.buffer,p.s.buffer]);}};";
      worker = new Worker(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
    } catch (error) { return slices(done); }
    worker.onmessage = function (event) {
      root.dataset.table = "worker";
      add(event.data);
      if (table.rows === core.SIDE) { worker.terminate(); done(); }
    };
    worker.onerror = function (event) {
      event.preventDefault();
      worker.terminate();
      table = core.emptyTable(model);
      slices(done);
    };
    worker.postMessage(model);
  }

  function slices(done) {
    root.dataset.table = "slices";
    (function next() {
      add(core.tabulate(model, table.rows, Math.min(core.SIDE, table.rows + 2)));
      if (table.rows < core.SIDE) requestAnimationFrame(next); else done();
    })();
  }

  function add(part) {
    core.addRows(model, table, part);
    $("progress").value = table.rows / core.SIDE;
  }

  /* ---- from an image to numbers --------------------------------------------------------------------------------- */

  function look() {
    var start = performance.now();
    state.running = false;
    state.seen = core.project(model, state.x);
    state.posterior = core.posterior(model, table, state.seen, joint);
    state.q = core.encode(model, state.x);
    state.boundQ = core.elbo(model, state.seen, state.q);
    restart(state.q, state.boundQ);
    state.levels = massLevels();
    frame();
    paintHeat();
    draw();
    publish(performance.now() - start);
  }

  function restart(q, bound) {
    state.star = { mean: q.mean.slice(), logsd: q.logsd.slice() };
    state.boundStar = bound || core.elbo(model, state.seen, state.star);
    state.trail = [state.star.mean.slice()];
    state.steps = 0;
    state.climb = {};
    state.top = false;
  }

  function step() {
    var start = performance.now(), next = core.ascend(model, state.seen, state.star, state.boundStar, state.climb);
    if (next) {
      state.star = next.q;
      state.boundStar = next.bound;
      state.trail.push(next.q.mean.slice());
      state.steps++;
    }
    state.top = !next || (next.gain < 1e-6 && state.steps > 3) || state.steps >= 500;
    if (reframe()) paintHeat();
    draw();
    publish(performance.now() - start);
    return !state.top;
  }

  function optimise() {
    if (state.running) {
      state.running = false;
      labels();
      return say("Paused after " + state.steps + " steps. " + sentence());
    }
    state.running = true;
    labels();
    say("q* is climbing.");
    var calm = window.matchMedia && matchMedia("(prefers-reduced-motion: reduce)").matches;
    (function next() {
      if (!state.running) return;
      var go = true;
      for (var i = 0; go && i < (calm ? 12 : 1); i++) go = step();
      if (go) return requestAnimationFrame(next);
      state.running = false;
      labels();
      say("q* has arrived after " + state.steps + " steps. " + sentence());
    })();
  }

  /* ---- pictures ------------------------------------------------------------------------------------------------- */

  function css(name) { return getComputedStyle(root).getPropertyValue(name).trim(); }

  function rgb(name) {
    return css(name).match(/[0-9a-f]{2}/gi).map(function (v) { return parseInt(v, 16); });
  }

  /* log p(x, z) above which the most probable 50 % and 95 % of the posterior lie. */
  function massLevels() {
    var near = [], sum = 0, out = [], at = 0, wanted = [0.5, 0.95];
    for (var n = 0; n < joint.length; n++) if (joint[n] > state.posterior.top - 12) near.push(joint[n]);
    near.sort(function (a, b) { return b - a; });
    near.forEach(function (v) { sum += Math.exp(v - state.posterior.top); });
    for (var i = 0, part = 0; i < near.length && at < 2; i++) {
      part += Math.exp(near[i] - state.posterior.top);
      while (at < 2 && part >= wanted[at] * sum) { out.push(near[i]); at++; }
    }
    return out;
  }

  function frame() {
    var p = state.posterior, c = p.mean, half = 3.4 * Math.max(p.sd[0], p.sd[1], 0.1);
    [state.q, state.star].forEach(function (q) {
      for (var k = 0; k < 2; k++) half = Math.max(half, Math.abs(q.mean[k] - c[k]) + 2.7 * Math.exp(q.logsd[k]));
    });
    half = Math.min(half, core.RADIUS);
    state.window = state.view === "plane" ? { c: [0, 0], half: core.RADIUS } : { c: c.slice(), half: half };
  }

  /* Widen the close-up when q* leaves it. */
  function reframe() {
    var w = state.window, q = state.star;
    var inside = [0, 1].every(function (k) { return Math.abs(q.mean[k] - w.c[k]) + 2.5 * Math.exp(q.logsd[k]) < w.half; });
    if (inside || state.view === "plane" || w.half >= core.RADIUS) return false;
    frame();
    return true;
  }

  function paintHeat() {
    var low = rgb("--xp-low"), high = rgb("--xp-high"), w = state.window, context = heat.getContext("2d");
    var picture = context.createImageData(HEAT, HEAT), values = new Float64Array(HEAT * HEAT), top = state.posterior.top;
    for (var r = 0, n = 0; r < HEAT; r++) {
      var z2 = w.c[1] + w.half * (1 - 2 * (r + 0.5) / HEAT);
      for (var c = 0; c < HEAT; c++, n++) {
        var v = core.interpolate(joint, w.c[0] + w.half * (2 * (c + 0.5) / HEAT - 1), z2), t = v < top - 14 ? 0 : Math.min(1, Math.pow(Math.exp(v - top), 0.6));
        values[n] = v;
        for (var k = 0; k < 3; k++) picture.data[4 * n + k] = low[k] + t * (high[k] - low[k]);
        picture.data[4 * n + 3] = 255;
      }
    }
    context.putImageData(picture, 0, 0);
    state.contours = state.levels.map(function (level) { return contour(values, level); });
  }

  /* Marching squares: segments, in units of the heat map's pixels. */
  function contour(v, level) {
    var out = [];
    for (var r = 0; r < HEAT - 1; r++) {
      for (var c = 0; c < HEAT - 1; c++) {
        var o = r * HEAT + c, corner = [v[o], v[o + 1], v[o + HEAT + 1], v[o + HEAT]], points = [];
        var above = corner.filter(function (a) { return a > level; }).length;
        if (above === 0 || above === 4) continue;
        for (var e = 0; e < 4; e++) {
          var a = corner[e], b = corner[(e + 1) % 4];
          if ((a > level) === (b > level)) continue;
          var t = isFinite(a - b) ? (level - a) / (b - a) : 0.5;
          points.push([[c + t, r], [c + 1, r + t], [c + 1 - t, r + 1], [c, r + 1 - t]][e]);
        }
        for (var i = 0; i + 1 < points.length; i += 2) out.push([points[i], points[i + 1]]);
      }
    }
    return out;
  }

  function sharpen(canvas) {
    var ratio = Math.min(3, window.devicePixelRatio || 1), size = Math.round((canvas.clientWidth || 300) * ratio);
    if (canvas.width !== size) canvas.width = canvas.height = size;
    var context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    return { g: context, size: size / ratio };
  }

  function draw() { drawMap(); drawPad(); drawDecoded(state.star.mean); drawNumbers(); }

  var MARGIN = 34;

  function drawMap() {
    var s = sharpen($("map")), g = s.g, w = state.window, side = s.size - MARGIN - 6;
    var X = function (z) { return MARGIN + side * ((z - w.c[0]) / w.half + 1) / 2; };
    var Y = function (z) { return 6 + side * (1 - (z - w.c[1]) / w.half) / 2; };
    g.clearRect(0, 0, s.size, s.size);
    g.imageSmoothingEnabled = true;
    g.drawImage(heat, MARGIN, 6, side, side);
    axes(g, w, X, Y, side, s.size);
    g.save();
    g.beginPath();
    g.rect(MARGIN, 6, side, side);
    g.clip();
    state.contours.forEach(function (segments) {
      g.beginPath();
      segments.forEach(function (p) {
        g.moveTo(MARGIN + (p[0][0] + 0.5) * side / HEAT, 6 + (p[0][1] + 0.5) * side / HEAT);
        g.lineTo(MARGIN + (p[1][0] + 0.5) * side / HEAT, 6 + (p[1][1] + 0.5) * side / HEAT);
      });
      g.strokeStyle = css("--xp-contour");
      g.lineWidth = 1.2;
      g.stroke();
    });
    trail(g, X, Y);
    ellipses(g, state.q, X, Y, css("--xp-encoder"), [7, 5]);
    ellipses(g, state.star, X, Y, css("--xp-star"), []);
    g.restore();
  }

  function axes(g, w, X, Y, side, size) {
    var gap = [0.1, 0.2, 0.5, 1, 2].filter(function (v) { return 2 * w.half / v <= 7; })[0] || 4;
    g.font = "12px system-ui, sans-serif";
    g.fillStyle = css("--xp-text");
    g.strokeStyle = css("--xp-line");
    g.lineWidth = 1;
    g.strokeRect(MARGIN, 6, side, side);
    for (var axis = 0; axis < 2; axis++) {
      for (var v = Math.ceil((w.c[axis] - w.half) / gap) * gap; v <= w.c[axis] + w.half; v += gap) {
        var text = (Math.abs(v) < 1e-9 ? 0 : v).toFixed(gap < 1 ? 1 : 0).replace("-", "\u2212");
        g.textAlign = axis ? "right" : "center";
        g.textBaseline = axis ? "middle" : "top";
        g.beginPath();
        if (axis) { g.moveTo(MARGIN - 4, Y(v)); g.lineTo(MARGIN, Y(v)); } else { g.moveTo(X(v), 6 + side); g.lineTo(X(v), 10 + side); }
        g.stroke();
        if (axis) { if (Y(v) > 22) g.fillText(text, MARGIN - 6, Y(v)); } else if (X(v) < size - 34) g.fillText(text, X(v), 12 + side);
      }
    }
    g.font = "italic 14px Georgia, serif";
    g.textAlign = "right"; g.textBaseline = "top";
    g.fillText("z\u2081", size - 6, 11 + side);
    g.fillText("z\u2082", MARGIN - 8, 5);
  }

  /* The ellipses of a factorized Gaussian that hold 50 % and 95 % of it. */
  function ellipses(g, q, X, Y, colour, dash) {
    [1.1774, 2.4477].forEach(function (radius) {
      g.beginPath();
      g.ellipse(X(q.mean[0]), Y(q.mean[1]), Math.abs(X(radius * Math.exp(q.logsd[0])) - X(0)), Math.abs(Y(radius * Math.exp(q.logsd[1])) - Y(0)), 0, 0, 7);
      stroke(g, colour, dash);
    });
    g.beginPath();
    if (dash.length) { // the encoder's centre is a cross, that of q* a disc
      g.moveTo(X(q.mean[0]) - 6, Y(q.mean[1])); g.lineTo(X(q.mean[0]) + 6, Y(q.mean[1]));
      g.moveTo(X(q.mean[0]), Y(q.mean[1]) - 6); g.lineTo(X(q.mean[0]), Y(q.mean[1]) + 6);
      stroke(g, colour, []);
    } else {
      g.arc(X(q.mean[0]), Y(q.mean[1]), 4.5, 0, 7);
      g.fillStyle = colour;
      stroke(g, css("--xp-halo"), []);
      g.fill();
    }
  }

  function stroke(g, colour, dash) {
    g.setLineDash([]);
    g.strokeStyle = css("--xp-halo");
    g.lineWidth = 5;
    g.stroke();
    g.setLineDash(dash);
    g.strokeStyle = colour;
    g.lineWidth = 2.5;
    g.stroke();
    g.setLineDash([]);
  }

  function trail(g, X, Y) {
    if (state.trail.length < 2) return;
    g.beginPath();
    state.trail.forEach(function (z, i) { g[i ? "lineTo" : "moveTo"](X(z[0]), Y(z[1])); });
    g.strokeStyle = css("--xp-star");
    g.lineWidth = 1.5;
    g.stroke();
  }

  /* An image of 28 x 28 grey values between 0 (paper) and 1 (ink), enlarged without smoothing. */
  function raster(g, size, ink) {
    var small = raster.canvas || (raster.canvas = document.createElement("canvas")), context = small.getContext("2d");
    small.width = small.height = SIDE;
    var picture = context.createImageData(SIDE, SIDE);
    for (var j = 0; j < ink.length; j++) {
      picture.data[4 * j] = picture.data[4 * j + 1] = picture.data[4 * j + 2] = Math.round(255 - 238 * ink[j]);
      picture.data[4 * j + 3] = 255;
    }
    context.putImageData(picture, 0, 0);
    g.imageSmoothingEnabled = false;
    g.drawImage(small, 0, 0, size, size);
  }

  function drawPad() {
    var s = sharpen($("pad")), g = s.g, cell = s.size / SIDE;
    raster(g, s.size, state.x);
    if (document.activeElement === $("pad") && pen.keyboard) {
      g.strokeStyle = "#b84a00";
      g.lineWidth = 3;
      g.strokeRect(pen.c * cell, pen.r * cell, cell, cell);
    }
  }

  function drawDecoded(z) {
    var s = sharpen($("decoded"));
    raster(s.g, s.size, core.decode(model, z));
  }

  /* ---- numbers and bars ----------------------------------------------------------------------------------------- */

  function nats(v) { return (v < 0 ? "\u2212" : "") + Math.abs(v).toFixed(3); }

  function levels() {
    var top = state.posterior.logp, star = state.boundStar.value, own = state.boundQ.value;
    return { logp: top, best: star, elbo: own, approximation: top - star, amortization: star - own, inference: top - own };
  }

  function drawNumbers() {
    var v = levels(), scale = Math.max(v.inference, v.approximation, 0.1);
    Object.keys(v).forEach(function (name) { $(name).textContent = nats(v[name]); });
    var width = function (x) { return Math.max(0, Math.min(100, 100 * x / scale)) + "%"; };
    $("bar-approximation").style.width = width(v.approximation);
    $("bar-amortization").style.width = width(v.amortization);
    $("bar-scale").textContent = "0 to " + scale.toFixed(2) + " nats";
    ["mean0", "mean1", "sd0", "sd1"].forEach(function (name) {
      var k = +name.slice(-1), value = name[0] === "m" ? state.star.mean[k] : state.star.logsd[k];
      $(name).value = value;
      var shown = (name[0] === "m" ? value : Math.exp(value)).toFixed(2).replace("-", "\u2212");
      $(name + "-out").textContent = shown;
      $(name).setAttribute("aria-valuetext", shown);
    });
    var warning = state.posterior.edge > 1e-4 ? "This posterior reaches the edge of the computed plane: log p(x) is too low." :
      v.amortization < -0.001 ? "q* is still worse than the encoder's q: the amortization gap is negative until q* has climbed past it." : "";
    if (!warning && state.top) {
      var share = nearby();
      if (share < 0.5) warning = "q* sits on the smaller hill: only " + Math.round(100 * share) + " % of the posterior is near it. Drag it onto another hill and optimise again.";
    }
    if (!warning && !state.top) warning = "q* is not at its top yet: until it is, the first bar is more than the approximation gap.";
    if ($("warning").textContent !== warning) $("warning").textContent = warning;
  }

  /* The share of the posterior that lies near q*. */
  function nearby() { return core.share(joint, state.posterior, state.star); }

  function sentence() {
    var v = levels(), short = function (x) { return x.toFixed(2).replace("-", "minus "); };
    if (!state.top) return "Inference gap " + short(v.inference) + " nats; it is divided when q* has reached its top.";
    return (nearby() < 0.5 ? "At this local optimum: approximation gap " : "Approximation gap ") + short(v.approximation) + " nats, amortization gap " + short(v.amortization) + " nats, inference gap " + short(v.inference) + " nats.";
  }

  /* The status line: never about something that has changed since. `sayLater` waits until the hand rests. */
  var saying = 0;

  function say(text) {
    clearTimeout(saying);
    $("status").textContent = text;
  }

  function sayLater(what) {
    say("");
    saying = setTimeout(function () {
      if (pen.waiting || state.running) sayLater(what); else say(what + " " + sentence());
    }, 500);
  }

  function labels() {
    $("optimise").textContent = state.running ? "Pause" : "Optimise q*";
    root.dataset.running = state.running;
  }

  /* For the tests: everything to six digits, in one attribute. */
  function publish(ms) {
    var v = levels();
    root.dataset.check = JSON.stringify({
      digit: state.digit, logp: +v.logp.toFixed(6), elbo: +v.elbo.toFixed(6), best: +v.best.toFixed(6), edge: state.posterior.edge,
      q: state.q.mean.concat(state.q.logsd.map(Math.exp)), star: state.star.mean.concat(state.star.logsd.map(Math.exp)),
      steps: state.steps, top: state.top, ms: +ms.toFixed(1)
    });
  }

  /* ---- picking and drawing -------------------------------------------------------------------------------------- */

  function pick(index) {
    state.digit = index;
    state.x = index < 0 ? new Uint8Array(model.pixels) : Uint8Array.from(digits[index]);
    Array.prototype.forEach.call($("digits").children, function (button, i) { button.setAttribute("aria-pressed", i === index); });
    look();
    labels();
    say((index < 0 ? "Blank image: draw on it. " : "A " + data.labels[index] + ". ") + sentence());
  }

  function thumbnails() {
    digits.forEach(function (x, index) {
      var button = document.createElement("button"), canvas = document.createElement("canvas"), g = canvas.getContext("2d");
      canvas.width = canvas.height = SIDE;
      raster(g, SIDE, x);
      button.type = "button";
      button.setAttribute("aria-label", "Test digit " + data.labels[index] + (index % 2 ? ", a difficult one" : ", a typical one"));
      button.setAttribute("aria-pressed", "false");
      button.appendChild(canvas);
      button.addEventListener("click", function () { pick(index); });
      $("digits").appendChild(button);
    });
  }

  var pen = { r: 14, c: 14, down: false, erase: false, keyboard: false, waiting: false };

  function dab(r, c, reach) {
    var changed = false;
    for (var i = Math.max(0, Math.ceil(r - reach)); i <= Math.min(SIDE - 1, r + reach); i++) {
      for (var j = Math.max(0, Math.ceil(c - reach)); j <= Math.min(SIDE - 1, c + reach); j++) {
        if ((i - r) * (i - r) + (j - c) * (j - c) > reach * reach) continue;
        var value = pen.erase ? 0 : 1;
        if (state.x[i * SIDE + j] !== value) { state.x[i * SIDE + j] = value; changed = true; }
      }
    }
    if (changed) drawn();
  }

  function drawn() {
    if (state.digit >= 0) Array.prototype.forEach.call($("digits").children, function (b) { b.setAttribute("aria-pressed", "false"); });
    state.digit = -1;
    sayLater("Image changed.");
    if (pen.waiting) return;
    pen.waiting = true;
    requestAnimationFrame(function () { pen.waiting = false; look(); labels(); });
  }

  function padAt(event) {
    var box = $("pad").getBoundingClientRect();
    return [(event.clientY - box.top) / box.height * SIDE - 0.5, (event.clientX - box.left) / box.width * SIDE - 0.5];
  }

  function connectPad() {
    var pad = $("pad");
    pad.addEventListener("pointerdown", function (event) {
      pad.setPointerCapture(event.pointerId);
      pen.down = true;
      pen.keyboard = false;
      pen.last = padAt(event);
      dab(pen.last[0], pen.last[1], 1.15);
    });
    pad.addEventListener("pointermove", function (event) {
      if (!pen.down) return;
      (event.getCoalescedEvents ? event.getCoalescedEvents().concat([event]) : [event]).forEach(function (part) {
        var to = padAt(part), n = Math.ceil(Math.max(Math.abs(to[0] - pen.last[0]), Math.abs(to[1] - pen.last[1])) * 2) || 1;
        for (var i = 1; i <= n; i++) dab(pen.last[0] + (to[0] - pen.last[0]) * i / n, pen.last[1] + (to[1] - pen.last[1]) * i / n, 1.15);
        pen.last = to;
      });
    });
    ["pointerup", "pointercancel"].forEach(function (name) { pad.addEventListener(name, function () { pen.down = false; }); });
    pad.addEventListener("keydown", function (event) {
      var move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!move && event.key !== " " && event.key !== "Enter") return;
      event.preventDefault();
      pen.keyboard = true;
      if (move) {
        pen.r = Math.max(0, Math.min(SIDE - 1, pen.r + move[0]));
        pen.c = Math.max(0, Math.min(SIDE - 1, pen.c + move[1]));
      }
      if (!move || event.shiftKey) dab(pen.r + 0.5, pen.c + 0.5, 0.8);
      drawPad();
    });
    pad.addEventListener("blur", drawPad);
    $("erase").addEventListener("click", function () {
      pen.erase = !pen.erase;
      $("erase").setAttribute("aria-pressed", pen.erase);
    });
    $("blank").addEventListener("click", function () { pick(-1); });
  }

  /* ---- moving q* by hand ---------------------------------------------------------------------------------------- */

  function byHand(change) {
    state.running = false;
    var start = performance.now(), q = { mean: state.star.mean.slice(), logsd: state.star.logsd.slice() };
    change(q);
    restart(q);
    if (reframe()) paintHeat();
    draw();
    labels();
    publish(performance.now() - start);
    sayLater("q* was moved.");
  }

  function connectMap() {
    var map = $("map"), held = false, waiting = null;
    function at(event) {
      var box = map.getBoundingClientRect(), side = box.width - MARGIN - 6, w = state.window;
      var z = [w.c[0] + w.half * (2 * (event.clientX - box.left - MARGIN) / side - 1), w.c[1] + w.half * (1 - 2 * (event.clientY - box.top - 6) / side)];
      return z.map(function (v) { return Math.max(-core.RADIUS, Math.min(core.RADIUS, v)); });
    }
    function move(event) {
      var z = at(event);
      if (!held) return drawDecoded(z);
      if (!waiting) requestAnimationFrame(function () { var to = waiting; waiting = null; byHand(function (q) { q.mean = to; }); });
      waiting = z;
    }
    map.addEventListener("pointerdown", function (event) { held = true; map.setPointerCapture(event.pointerId); move(event); });
    map.addEventListener("pointermove", move);
    ["pointerup", "pointercancel"].forEach(function (name) { map.addEventListener(name, function () { held = false; }); });
    map.addEventListener("pointerleave", function () { if (!held) drawDecoded(state.star.mean); });
    ["mean0", "mean1", "sd0", "sd1"].forEach(function (name) {
      $(name).addEventListener("input", function () {
        var value = +$(name).value, k = +name.slice(-1);
        byHand(function (q) { (name[0] === "m" ? q.mean : q.logsd)[k] = value; });
      });
    });
  }

  function connect() {
    connectPad();
    connectMap();
    $("optimise").addEventListener("click", optimise);
    $("step").addEventListener("click", function () { state.running = false; step(); labels(); say("Step " + state.steps + ". " + sentence()); });
    $("encoder").addEventListener("click", function () { byHand(function (q) { q.mean = state.q.mean.slice(); q.logsd = state.q.logsd.slice(); }); say("q* is the encoder's q. " + sentence()); });
    $("prior").addEventListener("click", function () { byHand(function (q) { q.mean = [0, 0]; q.logsd = [0, 0]; }); say("q* is the prior. " + sentence()); });
    ["close", "plane"].forEach(function (name) {
      $("view-" + name).addEventListener("change", function () { state.view = name; frame(); paintHeat(); draw(); });
    });
    new MutationObserver(function () { paintHeat(); draw(); }).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    if (window.ResizeObserver) new ResizeObserver(draw).observe($("map")); else window.addEventListener("resize", draw);
  }

  root.hidden = false;
  $("fallback").hidden = true;
  root.dataset.ready = "false";
  thumbnails();
  prepare(function () {
    connect();
    $("loading").hidden = true;
    $("work").hidden = false;
    pick(19);
    root.dataset.ready = "true";
  });
})();
