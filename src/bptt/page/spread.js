// Singular values of single steps, and how gates and states are spread.

function drawSpectra(host, flow) {
  const lines = flow.spectra.map((s, i) => ({
    name: s.step, look: KEYS[i % KEYS.length], xs: s.values.map((_, j) => j + 1), ys: s.values,
  }));
  if (!lines.length) return;
  const largest = Math.max(...lines.map((l) => l.ys[0]));
  new Chart(host, {
    label: 'Singular values of the Jacobian of single steps', height: 220, lines,
    x: { label: 'singular value, the largest first', range: [1, Math.max(2, lines[0].xs.length)] },
    y: {
      label: 'stretch of an error', scale: 'log',
      range: [Math.max(extent(lines.flatMap((l) => l.ys), 'log')[0], largest * 1e-4), Math.max(largest, 1.2)],
    },
    marks: [{ y: 1, label: 'keeps its size' }],
    say: (i) => `Singular value ${i + 1}: ${lines.map((l) => `${number(l.ys[i])} at step ${l.name}`).join(', ')}.`,
  }).show(0);
}

function drawHistogram(host, histogram) {
  const { counts, low, high } = histogram;
  const most = Math.max(...counts) || 1;
  const [height, foot] = [72, 16];
  const svg = shape('svg', { role: 'img', 'aria-label': host.dataset.label });
  host.append(svg);
  whenever(host, (width) => {
    const wide = width / counts.length;
    svg.setAttribute('width', width);
    svg.setAttribute('height', height + foot);
    const bars = counts.map((count, i) => {
      const tall = (height * count) / most;
      return shape('rect', { class: 'bar', x: i * wide, y: height - tall, width: Math.max(0.5, wide - 1), height: tall });
    });
    const ends = [[0, 'start', low], [width, 'end', high]].map(([x, anchor, v]) => {
      const text = shape('text', { class: 'tick', x, y: height + 13, 'text-anchor': anchor });
      text.textContent = number(v);
      return text;
    });
    svg.replaceChildren(shape('line', { class: 'grid', x1: 0, x2: width, y1: height, y2: height }), ...bars, ...ends);
  });
}
