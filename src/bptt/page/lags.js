// What each lag contributes, and what a truncation costs, by a slider.

const MODES = {
  output: {
    name: 'each output goes back k2 steps (k1 = 1)',
    cuts: (flow) => flow.biases.map((bias, i) => ({
      k1: 1, k2: i + 1, bias, cosine: flow.cosines[i], work: flow.works[i],
    })),
  },
  chunks: {
    name: 'the state is detached every k2 steps (k1 = k2)',
    cuts: (flow) => flow.chunks,
  },
  halves: {
    name: 'half of each pass is new (k1 = k2 / 2)',
    cuts: (flow) => flow.halves,
  },
};

function sayCut(cut) {
  const margin = cut.bias_margin ? ` ± ${percent(cut.bias_margin)}` : '';
  return `k1 = ${cut.k1}, k2 = ${cut.k2}: the gradient is off by ${percent(cut.bias)}`
    + `${margin} (bias), at a cosine of ${cut.cosine.toFixed(3)} with the full one, `
    + `for ${number(cut.work)} times the work of full BPTT.`;
}

function drawLags(host, flow) {
  const place = (name) => host.querySelector(`[data-draw="${name}"]`);
  const lags = flow.by_lag.map((_, i) => i);
  const total = flow.by_lag.reduce((a, b) => a + b, 0) || 1;
  const largest = Math.max(...flow.by_lag);
  const contributions = new Chart(place('lags'), {
    label: 'Contribution of each lag to the gradient', height: 230,
    x: { label: 'lag, in steps', scale: 'lag' },
    // Below a millionth there is only rounding.
    y: {
      label: 'norm of the contribution', scale: 'log',
      range: [Math.max(extent(flow.by_lag, 'log')[0], largest * 1e-6), largest],
    },
    lines: [{ xs: lags, ys: flow.by_lag, look: 'main', margins: flow.batches > 2 ? flow.by_lag_margin : null }],
    say: (i) => `Lag ${i} contributes ${number(flow.by_lag[i])}, `
      + `${percent(flow.by_lag[i] / total)} of the sum over all lags.`,
  });
  contributions.show(0);
  const costs = new Chart(place('bias'), {
    label: 'Bias of the gradient by k2, for k1 = 1', height: 230,
    x: { label: 'k2, in steps', scale: 'lag', range: [1, flow.steps] },
    y: { label: 'bias, where each output goes back k2 steps', format: percent, range: [0, Math.max(...flow.biases)] },
    lines: [{ xs: lags.map((l) => l + 1), ys: flow.biases, look: 'main' }],
    say: (i) => `Going back ${i + 1} step${i ? 's' : ''}, the gradient is off by ${percent(flow.biases[i])}.`,
  });
  costs.show(flow.window - 1);
  chooseCut(place('choose'), flow, (cut) => {
    const isWindow = cut.k1 === 1 && cut.k2 === flow.window;
    const label = `k2 = ${cut.k2}${isWindow ? ', the 5 % window' : ''}`;
    contributions.mark([{ x: cut.k2 - 1, label, shade: true }]);
    costs.mark([{ x: cut.k2, label }, { y: 0.05, label: '5 %' }]);
  });
}

function chooseCut(host, flow, chosen) {
  let cuts = MODES.output.cuts(flow);
  const told = element('p', { class: 'answer', 'aria-live': 'polite', 'data-told': 'cut' });
  const show = (i) => {
    told.textContent = sayCut(cuts[i]);
    chosen(cuts[i]);
  };
  const first = flow.window - 1;
  const steps = slider('How far back, k2', 0, cuts.length - 1, first, (i) => `${cuts[i].k2} steps`, show);
  const modes = element('select', { 'aria-label': 'Kind of truncation' });
  for (const [key, mode] of Object.entries(MODES)) {
    if (mode.cuts(flow).length) modes.append(element('option', { value: key }, mode.name));
  }
  modes.addEventListener('change', () => {
    const before = Number(steps.input.value);
    const k2 = cuts[before].k2;
    cuts = MODES[modes.value].cuts(flow);
    const next = clamp(nearest(cuts.map((c) => c.k2), k2), 0, cuts.length - 1);
    steps.set(next, cuts.length - 1);
    show(next);
  });
  host.append(element('div', { class: 'controls' }, modes, steps.node), told);
  show(first);
}
