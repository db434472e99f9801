// One error on its way back: through the text, and through the unrolled network.

const WIDEST = 16; // pixels of the widest arrow
const TEXT_DECADES = 3;

// What is looked at: a stretch of text if there is one, else the flow's steps.
function sourceOf(run) {
  if (run.reading) {
    const { tokens, spaced, losses } = run.reading;
    return { norms: new Norms(run.reading.norms), tokens, spaced, losses, steps: losses.length };
  }
  if (!run.flow) return null;
  return { norms: new Norms(run.flow.band ?? run.flow.norms), steps: run.flow.steps };
}

function row(source, t) {
  return Array.from({ length: source.norms.lags(t) }, (_, lag) => source.norms.at(t, t - lag));
}

function drawError(host, run) {
  const source = sourceOf(run);
  if (!source) return;
  const place = (name) => host.querySelector(`[data-draw="${name}"]`);
  const parts = [];
  const choose = (t) => parts.forEach((part) => part(clamp(t, 0, source.steps - 1)));
  if (source.tokens) parts.push(drawText(place('text'), source, choose));
  parts.push(drawUnrolled(place('unrolled'), source, choose));
  // Where an output has much to go back through.
  choose(Math.floor(source.steps * 0.8));
}

function drawText(host, source, choose) {
  const tokens = source.tokens.map((token, i) => {
    // Inline, and no button, so that lines break between words.
    const node = element('span', { class: 'token', role: 'radio', tabindex: -1, 'aria-checked': false },
      source.spaced ? visible(token) : token.replaceAll('\n', '⏎'));
    if (i === 0) node.setAttribute('aria-disabled', true); // nothing predicts it
    else node.addEventListener('click', () => choose(i - 1));
    if (token === '\n') node.classList.add('sign');
    return node;
  });
  const text = element('div', { class: 'tokens', role: 'radiogroup', 'aria-label': 'The text; the arrow keys choose a token' });
  tokens.forEach((node, i) => {
    text.append(node);
    if (source.spaced) text.append(' ');
    if (source.tokens[i].includes('\n')) text.append(element('br'));
  });
  const told = element('p', { class: 'answer', 'aria-live': 'polite', 'data-told': 'text' });
  host.append(text, told);
  let chosen = 0;
  text.addEventListener('keydown', (event) => {
    const moves = { ArrowLeft: -1, ArrowUp: -10, ArrowRight: 1, ArrowDown: 10, Home: -1e9, End: 1e9 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    choose(chosen + moves[event.key]);
    tokens[chosen + 1].focus();
  });
  const colours = () => {
    const norms = row(source, chosen);
    const largest = Math.max(...norms);
    tokens.forEach((node, i) => {
      const strength = i <= chosen ? level(norms[chosen - i], largest, TEXT_DECADES) : 0;
      const shade = colour(strength);
      node.style.background = strength > 0 ? `rgb(${shade.join()})` : '';
      node.style.color = strength > 0 ? inkOn(shade) : '';
    });
  };
  isDark.addEventListener('change', colours);
  return (t) => {
    tokens[chosen + 1].tabIndex = -1;
    tokens[chosen + 1].setAttribute('aria-checked', false);
    chosen = t;
    tokens[t + 1].tabIndex = 0;
    tokens[t + 1].setAttribute('aria-checked', true);
    colours();
    told.textContent = sayReading(source, t);
  };
}

function sayReading(source, t) {
  const norms = row(source, t);
  const strongest = norms.map((v, lag) => [v, lag]).sort((a, b) => b[0] - a[0]).slice(0, 4)
    .map(([v, lag]) => `“${visible(source.tokens[t - lag])}” ${lag === 0 ? 'just before' : `${lag} further back`} (${number(v)})`);
  return `“${visible(source.tokens[t + 1])}” was predicted with a loss of `
    + `${number(source.losses[t])} nats. Its error reaches most strongly the states after ${strongest.join(', ')}.`;
}

// The figure of the tutorial, unrolled over as many steps as fit.
function drawUnrolled(host, source, choose) {
  const view = { t: 0, first: 0, reached: Infinity, columns: 8, timer: 0 };
  const figure = shape('svg', { class: 'unrolled', role: 'img' });
  const told = element('p', { class: 'answer', 'aria-live': 'polite', 'data-told': 'unrolled' });
  const draw = () => {
    drawSteps(figure, source, view, choose);
    const text = sayError(source, view);
    told.textContent = text;
    figure.setAttribute('aria-label', text);
    earlier.disabled = view.first + view.columns >= source.norms.lags(view.t);
    later.disabled = view.first === 0;
  };
  const stop = () => clearInterval(view.timer);
  const turn = (by) => {
    stop();
    view.first = Math.max(0, view.first + by * view.columns);
    view.reached = Infinity;
    draw();
  };
  const step = () => {
    const last = Math.min(view.first + view.columns, source.norms.lags(view.t)) - 1;
    view.reached = view.reached >= last ? view.first : view.reached + 1;
    draw();
    return view.reached < last;
  };
  const play = () => {
    stop();
    view.reached = view.first;
    draw();
    view.timer = setInterval(() => step() || stop(), isCalm.matches ? 1200 : 450);
  };
  const earlier = button('← Earlier steps', () => turn(1));
  const later = button('Later steps →', () => turn(-1));
  const outputs = slider('Output t', 0, source.steps - 1, 0, (t) => `output ${t}`, choose);
  outputs.input.setAttribute('data-choose', 'output');
  host.append(
    element('div', { class: 'controls' }, outputs.node,
      button('Send it back', play), button('One step', () => { stop(); step(); }), earlier, later),
    figure, told,
  );
  whenever(host, (width) => {
    view.columns = clamp(Math.floor(width / 86), 3, 10);
    view.first = Math.floor(view.first / view.columns) * view.columns;
    view.width = width;
    draw();
  });
  return (t) => {
    stop();
    Object.assign(view, { t, first: 0, reached: Infinity });
    outputs.set(t);
    if (view.width) draw();
  };
}

function sayError(source, view) {
  const norms = row(source, view.t);
  const last = Math.min(view.first + view.columns - 1, norms.length - 1, view.reached);
  const loss = source.losses ? ` has a loss of ${number(source.losses[view.t])} nats` : '';
  const share = norms[0] ? ` (${percent(norms[last] / norms[0])} of it)` : '';
  const back = last === 0 ? '' : `; ${last} step${last > 1 ? 's' : ''} further back ${number(norms[last])} is left${share}`;
  return `Output ${view.t}${loss ? `${loss}. Its gradient has` : ' has a gradient of'} the norm ${number(norms[0])} at its own state${back}.`;
}

function drawSteps(figure, source, view, choose) {
  const norms = row(source, view.t);
  const largest = Math.max(...norms) || 1;
  const gap = view.width / view.columns;
  const height = source.tokens ? 236 : 206;
  const parts = [];
  figure.setAttribute('width', view.width);
  figure.setAttribute('height', height);
  for (let i = 0; i < view.columns; i += 1) {
    const lag = view.first + i;
    if (lag >= norms.length) break;
    const x = view.width - gap * (i + 0.5);
    const isReached = lag <= view.reached;
    const isLast = lag + 1 >= norms.length;
    parts.push(...column(source, view.t - lag, x, lag === 0, choose));
    if (isReached) parts.push(...errorArrow(x, gap, lag, norms, largest));
    const k = view.t - lag;
    const isCut = i === view.columns - 1 || isLast;
    if (!(isCut && k === 0)) parts.push(forward(isCut ? x - gap / 2 : x - gap + 20, 94, x - 18, 94));
    parts.push(stateAt(x, k, isReached ? level(norms[lag], largest, TEXT_DECADES) : 0));
  }
  figure.replaceChildren(...parts);
}

function note(cls, x, y, text) {
  const node = shape('text', { class: cls, x, y, 'text-anchor': 'middle' });
  node.textContent = text;
  return node;
}

function stateAt(x, k, share) {
  const [r, g, b] = colour(share);
  const circle = shape('circle', { class: 'state', cx: x, cy: 104, r: 19 });
  if (share > 0) circle.style.fill = `rgb(${r} ${g} ${b})`;
  const label = note('state-name', x, 108, `s${k}`);
  if (share > 0) label.style.fill = inkOn([r, g, b]);
  return shape('g', {}, circle, label);
}

// A thin arrow to the right or upwards.
function forward(x1, y1, x2, y2) {
  const head = x1 === x2
    ? `${x2 - 3},${y2 + 6} ${x2 + 3},${y2 + 6} ${x2},${y2}`
    : `${x2 - 6},${y2 - 3} ${x2 - 6},${y2 + 3} ${x2},${y2}`;
  return shape('g', { class: 'forward' },
    shape('line', { x1, y1, x2, y2 }), shape('polygon', { points: head }));
}

// Input, output, and the thin arrows of the way forward.
function column(source, k, x, isChosen, choose) {
  const output = shape('g', { class: isChosen ? 'output chosen' : 'output' },
    shape('circle', { cx: x, cy: 24, r: 16 }), note('', x, 28, isChosen ? `E${k}` : `o${k}`));
  output.addEventListener('click', () => choose(k));
  const parts = [
    forward(x, 85, x, 41),
    forward(x, 174, x, 124),
    output,
  ];
  if (source.tokens) {
    parts.push(note('word', x, 194, shortened(source.tokens[k])));
    parts.push(note('tick', x, 212, `x${k}`));
    if (isChosen) parts.push(note('tick', x, 230, `→ ${shortened(source.tokens[k + 1])}`));
  } else {
    parts.push(note('tick', x, 190, `x${k}`));
  }
  return parts;
}

function shortened(token) {
  const signs = Array.from(visible(token));
  return signs.length > 9 ? `${signs.slice(0, 8).join('')}…` : signs.join('');
}

// From the output down at lag 0, else from the state after this one.
function errorArrow(x, gap, lag, norms, largest) {
  const value = norms[lag];
  const wide = Math.max(1, (WIDEST * value) / largest);
  const head = Math.max(5, wide * 0.9);
  const cls = value > 0 ? 'error' : 'error nothing';
  if (lag === 0) {
    const tip = 84;
    return [
      shape('line', { class: cls, x1: x + 5, x2: x + 5, y1: 39, y2: tip - head, 'stroke-width': wide }),
      shape('polygon', { class: 'error-head', points: `${x + 5 - head},${tip - head} ${x + 5 + head},${tip - head} ${x + 5},${tip}` }),
      note('amount', x - 26, 64, number(value)),
    ];
  }
  const [from, tip, y] = [x + gap - 20, x + 20, 114];
  return [
    shape('line', { class: cls, x1: from, x2: tip + head, y1: y, y2: y, 'stroke-width': wide }),
    shape('polygon', { class: 'error-head', points: `${tip + head},${y - head} ${tip + head},${y + head} ${tip},${y}` }),
    note('amount', x + gap / 2, 146, number(value)),
  ];
}
