// How a run went, and several runs together.

const KEYS = ['first', 'second', 'third', 'fourth', 'fifth', 'sixth'];

function nearest(xs, x) {
  let best = -1;
  xs.forEach((v, i) => {
    if (best < 0 || Math.abs(v - x) < Math.abs(xs[best] - x)) best = i;
  });
  return best;
}

function drawLoss(host, curves) {
  const trained = { xs: curves.step, ys: curves.loss, look: 'quiet' };
  const held = { xs: curves.valid_step, ys: curves.valid_loss, look: 'main dots' };
  const lines = [trained, held].filter((l) => l.xs.length);
  if (!lines.length) return;
  const say = (i) => {
    const step = lines[0].xs[i];
    const parts = [`After ${step.toLocaleString('en')} updates`];
    if (trained.xs.length) parts.push(`training loss ${number(curves.loss[i])} nats`);
    const at = nearest(held.xs, step);
    if (at >= 0) {
      const loss = curves.valid_loss[at];
      parts.push(`held-out loss ${number(loss)} (perplexity ${number(Math.exp(loss))}) `
        + `after ${curves.valid_step[at].toLocaleString('en')}`);
    }
    return `${parts.join(', ')}.`;
  };
  new Chart(host, {
    label: 'Loss by updates', height: 260, lines, say,
    x: { label: 'updates' },
    y: { label: 'loss, nats a token' },
    right: { label: 'perplexity', of: Math.exp },
  });
}

function drawSmall(host, label, unit, xs, ys, options = {}) {
  if (!xs.length) {
    host.remove();
    return;
  }
  new Chart(host, {
    label, height: 150, marks: options.marks,
    lines: [{ xs, ys, look: 'main' }],
    x: { label: 'updates' },
    y: { label, scale: options.scale },
    say: (i) => `${number(ys[i])}${unit} after ${xs[i].toLocaleString('en')} updates.`,
  });
}

// Before clipping, and what is left after it.
function drawNorm(host, curves, marks) {
  const before = curves.gradient_norm;
  if (!curves.clip) {
    drawSmall(host, 'gradient norm', '', curves.step, before, { scale: 'log' });
    return;
  }
  if (!before.length) {
    host.remove();
    return;
  }
  const after = before.map((norm) => Math.min(norm, curves.clip));
  new Chart(host, {
    label: 'gradient norm before (thin) and after clipping', height: 150, marks,
    lines: [
      { xs: curves.step, ys: before, look: 'quiet' },
      { xs: curves.step, ys: after, look: 'main' },
    ],
    x: { label: 'updates' },
    y: { label: 'gradient norm before (thin) and after clipping', scale: 'log' },
    say: (i) => `${number(before[i])}, ${number(after[i])} after clipping, after `
      + `${curves.step[i].toLocaleString('en')} updates.`,
  });
}

function drawCurves(host, curves) {
  const place = (name) => host.querySelector(`[data-draw="${name}"]`);
  drawLoss(place('loss'), curves);
  const marks = curves.clip ? [{ y: curves.clip, label: `clipped at ${number(curves.clip)}` }] : [];
  drawNorm(place('norm'), curves, marks);
  drawSmall(place('rate'), 'learning rate', '', curves.step, curves.learning_rate);
  drawSmall(place('speed'), 'tokens a second', ' tokens a second', curves.timing_step,
    curves.tokens_per_s);
}

// Held-out loss of all runs; each line has its name beside its last point.
function drawTogether(host, runs) {
  const lines = runs
    .map((run, i) => ({ run, look: `${KEYS[i % KEYS.length]} dots` }))
    .filter(({ run }) => run.curves && run.curves.valid_step.length)
    .map(({ run, look }) => ({
      name: run.name, look, xs: run.curves.valid_step, ys: run.curves.valid_loss,
    }));
  if (!lines.length) return;
  // The cursor walks along the longest run.
  lines.sort((a, b) => b.xs.at(-1) - a.xs.at(-1));
  new Chart(host, {
    label: 'Held-out loss of all runs by updates', height: 300, lines,
    x: { label: 'updates' },
    y: { label: 'held-out loss, nats a token' },
    right: { label: 'perplexity', of: Math.exp },
    say: (i) => {
      const step = lines[0].xs[i];
      const parts = lines.map((l) => {
        const at = nearest(l.xs, step);
        return `${l.name}: ${number(l.ys[at])} after ${l.xs[at].toLocaleString('en')}`;
      });
      return `${parts.join('; ')} updates.`;
    },
  });
}
