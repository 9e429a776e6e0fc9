/* The posterior explorer's arithmetic: a VAE with two latents in plain numbers. No page, no canvas; runs in a page, in a
   worker and in node. All values in nats.

   The decoder's last layer is linear, so log p(x|z) = sum_j x_j l_j(z) - softplus(l_j(z)) splits into
     h(z) . (W^T x) + b . x   minus   S(z) = sum_j softplus(l_j(z)).
   S(z) costs 78,400 multiplications but does not depend on the image: it is tabulated once on a grid over the latent
   plane. The first part costs 100 multiplications, so a new image needs milliseconds. */
var VaegapCore = (function factory() {
  "use strict";
  var LOG_2PI = Math.log(2 * Math.PI);
  var RADIUS = 5.76, SIDE = 193; // the table: 193 x 193 points, 0.06 apart; 2e-8 of the prior lies outside
  var NODES = 20; // Gauss-Hermite nodes along each axis
  var LOGVAR_MIN = -16, LOGVAR_MAX = 4; // bounds of the encoder's log-variance, as in vaegap/posteriors/base.py

  function floats(base64) {
    var text = atob(base64), bytes = new Uint8Array(text.length);
    for (var i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return new Float32Array(bytes.buffer);
  }

  function bits(base64, size) {
    var text = atob(base64), images = [], image = null;
    for (var i = 0; i < text.length; i++) {
      for (var b = 7; b >= 0; b--) {
        if (!image || image.count === size) { image = { count: 0, x: new Uint8Array(size) }; images.push(image.x); }
        image.x[image.count++] = (text.charCodeAt(i) >> b) & 1;
      }
    }
    return images;
  }

  /* Weights by name, from the exported strings. */
  function model(data) {
    var m = {};
    Object.keys(data.weights).forEach(function (name) { m[name] = floats(data.weights[name]); });
    m.pixels = m.logitBias.length;
    m.hidden = m.hiddenBias.length;
    return m;
  }

  /* What the decoder sees of an image: a = W^T x (hidden) and c = b . x. */
  function project(m, x) {
    var a = new Float64Array(m.hidden), c = 0;
    for (var j = 0; j < m.pixels; j++) {
      if (!x[j]) continue;
      c += m.logitBias[j];
      for (var k = 0, o = j * m.hidden; k < m.hidden; k++) a[k] += m.logitWeight[o + k];
    }
    return { a: a, c: c };
  }

  /* The encoder's q: mean and log sd, two numbers each. */
  function encode(m, x) {
    var width = m.encoderBias.length, out = [0, 0, 0, 0], on = [], j, k, i;
    for (j = 0; j < m.pixels; j++) if (x[j]) on.push(j);
    for (k = 0; k < width; k++) {
      var s = m.encoderBias[k];
      for (j = 0; j < on.length; j++) s += m.encoderWeight[k * m.pixels + on[j]];
      s = Math.tanh(s);
      for (i = 0; i < 4; i++) out[i] += m.headWeight[i * width + k] * s;
    }
    for (i = 0; i < 4; i++) out[i] += m.headBias[i];
    return { mean: [out[0], out[1]], logsd: [clampLogVar(out[2]) / 2, clampLogVar(out[3]) / 2] };
  }

  function clampLogVar(v) { return Math.max(LOGVAR_MIN, Math.min(LOGVAR_MAX, v)); }

  function hidden(m, z1, z2, out, at) {
    for (var k = 0; k < m.hidden; k++) {
      out[at + k] = Math.tanh(m.hiddenWeight[2 * k] * z1 + m.hiddenWeight[2 * k + 1] * z2 + m.hiddenBias[k]);
    }
  }

  /* S(z) for four rows of h at a time, so that each weight is read once for all four. The logarithm of a product of up to
     32 factors between 1 and 2 stands for a sum of logarithms. */
  function normalizers(m, h, count) {
    var H = m.hidden, W = m.logitWeight, out = new Float64Array(count);
    for (var n = 0; n < count; n += 4) {
      var o0 = n * H, o1 = Math.min(n + 1, count - 1) * H, o2 = Math.min(n + 2, count - 1) * H, o3 = Math.min(n + 3, count - 1) * H;
      var s0 = 0, s1 = 0, s2 = 0, s3 = 0, p0 = 1, p1 = 1, p2 = 1, p3 = 1;
      for (var j = 0; j < m.pixels; j++) {
        var b = m.logitBias[j], l0 = b, l1 = b, l2 = b, l3 = b;
        for (var k = 0, o = j * H; k < H; k++) {
          var w = W[o + k];
          l0 += w * h[o0 + k]; l1 += w * h[o1 + k]; l2 += w * h[o2 + k]; l3 += w * h[o3 + k];
        }
        p0 *= 1 + Math.exp(-Math.abs(l0)); if (l0 > 0) s0 += l0;
        p1 *= 1 + Math.exp(-Math.abs(l1)); if (l1 > 0) s1 += l1;
        p2 *= 1 + Math.exp(-Math.abs(l2)); if (l2 > 0) s2 += l2;
        p3 *= 1 + Math.exp(-Math.abs(l3)); if (l3 > 0) s3 += l3;
        if ((j & 31) === 31) {
          s0 += Math.log(p0); s1 += Math.log(p1); s2 += Math.log(p2); s3 += Math.log(p3);
          p0 = p1 = p2 = p3 = 1;
        }
      }
      out[n] = s0 + Math.log(p0);
      if (n + 1 < count) out[n + 1] = s1 + Math.log(p1);
      if (n + 2 < count) out[n + 2] = s2 + Math.log(p2);
      if (n + 3 < count) out[n + 3] = s3 + Math.log(p3);
    }
    return out;
  }

  /* ---- the table over the latent plane -------------------------------------------------------------------------- */

  function coordinate(i) { return -RADIUS + 2 * RADIUS * i / (SIDE - 1); }

  /* Rows [from, to) of the table: z1 runs with the row, z2 within it. */
  function tabulate(m, from, to) {
    var h = new Float32Array((to - from) * SIDE * m.hidden), at = 0;
    for (var i = from; i < to; i++) {
      for (var j = 0; j < SIDE; j++, at += m.hidden) hidden(m, coordinate(i), coordinate(j), h, at);
    }
    return { from: from, h: h, s: normalizers(m, h, (to - from) * SIDE) };
  }

  function emptyTable(m) { return { h: new Float32Array(SIDE * SIDE * m.hidden), s: new Float64Array(SIDE * SIDE), rows: 0 }; }

  function addRows(m, table, part) {
    table.h.set(part.h, part.from * SIDE * m.hidden);
    table.s.set(part.s, part.from * SIDE);
    table.rows += part.s.length / SIDE;
  }

  /* log p(x, z) on the table, log p(x) by the log of the sum of the cells, and the posterior's moments. */
  function posterior(m, table, p, out) {
    var H = m.hidden, h = table.h, a = p.a, joint = out || new Float64Array(SIDE * SIDE), top = -Infinity, n = 0, i, j;
    for (i = 0; i < SIDE; i++) {
      var z1 = coordinate(i);
      for (j = 0; j < SIDE; j++, n++) {
        var z2 = coordinate(j), v = 0;
        for (var k = 0, o = n * H; k < H; k++) v += h[o + k] * a[k];
        v += p.c - table.s[n] - 0.5 * (z1 * z1 + z2 * z2) - LOG_2PI;
        joint[n] = v;
        if (v > top) top = v;
      }
    }
    var sum = 0, edge = 0, mean = [0, 0], square = [0, 0];
    for (n = 0, i = 0; i < SIDE; i++) {
      var y1 = coordinate(i);
      for (j = 0; j < SIDE; j++, n++) {
        if (joint[n] < top - 40) continue;
        var w = Math.exp(joint[n] - top), y2 = coordinate(j);
        sum += w;
        mean[0] += w * y1; mean[1] += w * y2; square[0] += w * y1 * y1; square[1] += w * y2 * y2;
        if (i < 2 || j < 2 || i > SIDE - 3 || j > SIDE - 3) edge += w;
      }
    }
    var cell = Math.pow(2 * RADIUS / (SIDE - 1), 2), sd = [];
    for (i = 0; i < 2; i++) {
      mean[i] /= sum;
      sd[i] = Math.sqrt(Math.max(1e-6, square[i] / sum - mean[i] * mean[i]));
    }
    return { joint: joint, top: top, logp: top + Math.log(sum * cell), mean: mean, sd: sd, edge: edge / sum };
  }

  /* The share of the posterior that lies within four standard deviations of q: little of it, and there is another mode. */
  function share(joint, post, q) {
    var inside = 0, all = 0, n = 0;
    for (var i = 0; i < SIDE; i++) {
      for (var j = 0; j < SIDE; j++, n++) {
        if (joint[n] < post.top - 20) continue;
        var a = (coordinate(i) - q.mean[0]) / Math.exp(q.logsd[0]), b = (coordinate(j) - q.mean[1]) / Math.exp(q.logsd[1]), w = Math.exp(joint[n] - post.top);
        all += w;
        if (a * a + b * b < 16) inside += w;
      }
    }
    return inside / all;
  }

  /* log p(x, z) between the table's points: Catmull-Rom, for the picture only. */
  function interpolate(joint, z1, z2) {
    var u = (z1 + RADIUS) * (SIDE - 1) / (2 * RADIUS), v = (z2 + RADIUS) * (SIDE - 1) / (2 * RADIUS);
    if (u < 0 || v < 0 || u > SIDE - 1 || v > SIDE - 1) return -Infinity;
    var i = Math.min(SIDE - 3, Math.max(1, Math.floor(u))), j = Math.min(SIDE - 3, Math.max(1, Math.floor(v)));
    var a = spline(u - i), b = spline(v - j), sum = 0;
    for (var r = 0; r < 4; r++) {
      var o = (i - 1 + r) * SIDE + j - 1;
      sum += a[r] * (b[0] * joint[o] + b[1] * joint[o + 1] + b[2] * joint[o + 2] + b[3] * joint[o + 3]);
    }
    return sum;
  }

  function spline(t) {
    var q = t * t, c = q * t;
    return [(-t + 2 * q - c) / 2, (2 - 5 * q + 3 * c) / 2, (t + 4 * q - 3 * c) / 2, (c - q) / 2];
  }

  /* ---- bounds --------------------------------------------------------------------------------------------------- */

  /* Gauss-Hermite nodes and weights for N(0, 1), by Newton's method on the orthonormal polynomials. */
  function gaussHermite(n) {
    var nodes = [], weights = [], z = 0;
    for (var i = 0; i < n; i++) {
      // starts from the outermost root inwards, each guess from the roots before it (Press et al., "gauher")
      if (i === 0) z = Math.sqrt(2 * n + 1) - 1.85575 * Math.pow(2 * n + 1, -1 / 6);
      else if (i === 1) z -= 1.14 * Math.pow(n, 0.426) / z;
      else if (i === 2) z = 1.86 * z - 0.86 * nodes[0];
      else if (i === 3) z = 1.91 * z - 0.91 * nodes[1];
      else z = 2 * z - nodes[i - 2];
      if (i >= (n + 1) >> 1) break;
      var slope = 1;
      for (var it = 0; it < 50; it++) {
        var p1 = Math.pow(Math.PI, -0.25), p2 = 0;
        for (var j = 0; j < n; j++) {
          var p3 = p2;
          p2 = p1;
          p1 = z * Math.sqrt(2 / (j + 1)) * p2 - Math.sqrt(j / (j + 1)) * p3;
        }
        slope = Math.sqrt(2 * n) * p2;
        var step = p1 / slope;
        z -= step;
        if (Math.abs(step) < 1e-15) break;
      }
      nodes[i] = z;
      weights[i] = 2 / (slope * slope);
    }
    var out = { x: [], w: [] };
    for (var k = 0; k < nodes.length; k++) {
      [1, -1].forEach(function (sign) {
        if (sign < 0 && n % 2 && k === nodes.length - 1) return;
        out.x.push(sign * Math.SQRT2 * nodes[k]);
        out.w.push(weights[k] / Math.sqrt(Math.PI));
      });
    }
    return out;
  }

  /* The product rule; nodes of weight below 1e-10, half of all, are left out: they would add less than 1e-5. */
  var rule = (function () {
    var g = gaussHermite(NODES), out = [];
    g.x.forEach(function (x1, i) {
      g.x.forEach(function (x2, j) { if (g.w[i] * g.w[j] > 1e-10) out.push([x1, x2, g.w[i] * g.w[j]]); });
    });
    return out;
  })();

  /* L[q] = E_q[log p(x, z)] + entropy, and its gradient by (mean, log sd). No derivative of the decoder is needed:
     for a Gaussian, dE[f]/dmean = E[f eps] / sd and dE[f]/dlogsd = E[f (eps^2 - 1)]. */
  function elbo(m, p, q) {
    var count = rule.length, H = m.hidden, h = elbo.h || (elbo.h = new Float64Array(count * H)), sd = q.logsd.map(Math.exp), i;
    for (i = 0; i < count; i++) hidden(m, q.mean[0] + sd[0] * rule[i][0], q.mean[1] + sd[1] * rule[i][1], h, i * H);
    var s = normalizers(m, h, count), f = [], mean = 0, k;
    for (i = 0; i < count; i++) {
      var z1 = q.mean[0] + sd[0] * rule[i][0], z2 = q.mean[1] + sd[1] * rule[i][1], v = p.c - s[i] - 0.5 * (z1 * z1 + z2 * z2) - LOG_2PI;
      for (k = 0; k < H; k++) v += h[i * H + k] * p.a[k];
      f.push(v);
      mean += rule[i][2] * v;
    }
    var dmean = [0, 0], dlogsd = [1, 1]; // the entropy adds log sd
    for (i = 0; i < count; i++) {
      for (k = 0; k < 2; k++) {
        var e = rule[i][k], g = rule[i][2] * (f[i] - mean);
        dmean[k] += g * e / sd[k];
        dlogsd[k] += g * (e * e - 1);
      }
    }
    return { value: mean + q.logsd[0] + q.logsd[1] + 1 + LOG_2PI, dmean: dmean, dlogsd: dlogsd };
  }

  /* One step uphill: the natural gradient (the plain one rescaled by q's own variance), no longer than q is wide; halved
     until L grows. Returns the new q with its bound, or null at the top. */
  function ascend(m, p, q, bound, state) {
    var rate = Math.min(0.5, (state.rate || 0.25) * 1.5);
    for (var attempt = 0; attempt < 8; attempt++, rate /= 2) {
      var next = { mean: [0, 0], logsd: [0, 0] };
      for (var k = 0; k < 2; k++) {
        var variance = Math.exp(2 * q.logsd[k]);
        next.mean[k] = q.mean[k] + limit(rate * variance * bound.dmean[k], Math.exp(q.logsd[k]));
        next.logsd[k] = q.logsd[k] + limit(rate * bound.dlogsd[k] / 2, 0.3);
      }
      var reached = elbo(m, p, next);
      if (reached.value > bound.value) {
        state.rate = rate;
        return { q: next, bound: reached, gain: reached.value - bound.value };
      }
    }
    return null;
  }

  function limit(v, most) { return Math.max(-most, Math.min(most, v)); }

  /* Probabilities of the pixels at z. */
  function decode(m, z) {
    var h = new Float64Array(m.hidden), out = new Float32Array(m.pixels);
    hidden(m, z[0], z[1], h, 0);
    for (var j = 0; j < m.pixels; j++) {
      var l = m.logitBias[j];
      for (var k = 0; k < m.hidden; k++) l += m.logitWeight[j * m.hidden + k] * h[k];
      out[j] = 1 / (1 + Math.exp(-l));
    }
    return out;
  }

  return {
    SIDE: SIDE, RADIUS: RADIUS, factory: factory, model: model, bits: bits, project: project, encode: encode, decode: decode,
    tabulate: tabulate, emptyTable: emptyTable, addRows: addRows, posterior: posterior, interpolate: interpolate, share: share,
    elbo: elbo, ascend: ascend, gaussHermite: gaussHermite
  };
})();
if (typeof module !== "undefined" && module.exports) module.exports = VaegapCore;
