// Line charts with a cursor that follows the pointer or the arrow keys.

const SCALES = {
  linear: { of: (v) => v, ticks: linearTicks },
  // Lags begin at 0, where a logarithm has no place.
  lag: { of: (v) => Math.log(1 + v), ticks: lagTicks },
  log: { of: (v) => Math.log(v), ticks: logTicks },
};

function linearTicks(low, high, wanted) {
  const rough = (high - low || 1) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const each = [1, 2, 5, 10].find((f) => f * power >= 0.7 * rough) * power;
  const found = [];
  for (let i = Math.ceil(low / each - 1e-9); i * each <= high + each * 1e-9; i += 1) {
    found.push(Number((i * each).toPrecision(12)));
  }
  return found;
}

function lagTicks(low, high, wanted) {
  const all = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096];
  const fit = all.filter((v) => v >= low && v <= high);
  const each = Math.ceil(fit.length / Math.max(wanted, 2));
  return fit.filter((_, i) => i % each === 0);
}

function logTicks(low, high, wanted) {
  const [first, last] = [Math.ceil(Math.log10(low)), Math.floor(Math.log10(high))];
  if (last - first < 2) {
    const powers = [first - 1, first, first + 1, first + 2];
    const all = powers.flatMap((p) => [1, 2, 5].map((f) => Number(`${f}e${p}`)));
    return all.filter((v) => v >= low * 0.999 && v <= high * 1.001);
  }
  const each = Math.ceil((last - first + 1) / wanted);
  const found = [];
  for (let power = first; power <= last; power += each) found.push(Number(`1e${power}`));
  return found;
}

function extent(values, scale) {
  const fit = values.filter((v) => Number.isFinite(v) && (scale !== 'log' || v > 0));
  if (!fit.length) return [scale === 'log' ? 0.1 : 0, 1];
  let low = Infinity;
  let high = -Infinity;
  for (const v of fit) {
    low = Math.min(low, v);
    high = Math.max(high, v);
  }
  if (low === high) return scale === 'log' ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
  return [low, high];
}

function axis(scale, range, [from, to]) {
  const { of } = SCALES[scale];
  const [a, b] = [of(range[0]), of(range[1])];
  return (v) => from + ((of(v) - a) / (b - a || 1)) * (to - from);
}

// spec: label; height; x and y: {label, scale, range, format}; right: {label, of}, a
// second reading of y; lines: {name, xs, ys, look, margins}; marks: {x or y, label};
// say(i): the numbers at the i-th point of the first line.
class Chart {
  constructor(host, spec) {
    this.host = host;
    this.spec = spec;
    this.cursor = null;
    this.svg = shape('svg', { role: 'slider', tabindex: 0, 'aria-label': spec.label });
    this.readout = element('p', { class: 'readout' });
    host.append(this.svg, this.readout);
    this.points = spec.lines[0].xs.length;
    this.svg.setAttribute('aria-valuemin', 0);
    this.svg.setAttribute('aria-valuemax', Math.max(0, this.points - 1));
    this.svg.addEventListener('pointermove', (e) => this.point(e));
    this.svg.addEventListener('pointerdown', (e) => this.point(e));
    this.svg.addEventListener('keydown', (e) => this.key(e));
    this.rest();
    whenever(host, (width) => this.draw(width));
  }

  // Nothing is pointed at: the last point is what is said.
  rest() {
    this.show(this.points - 1);
  }

  show(i) {
    if (!this.points) return;
    this.cursor = clamp(i, 0, this.points - 1);
    const text = this.spec.say(this.cursor);
    this.readout.textContent = text;
    this.svg.setAttribute('aria-valuenow', this.cursor);
    this.svg.setAttribute('aria-valuetext', text);
    this.place();
  }

  point(event) {
    if (!this.x) return;
    const place = event.clientX - this.svg.getBoundingClientRect().left;
    let best = 0;
    this.spec.lines[0].xs.forEach((v, i, xs) => {
      if (Math.abs(this.x(v) - place) < Math.abs(this.x(xs[best]) - place)) best = i;
    });
    this.show(best);
  }

  key(event) {
    const far = Math.max(1, Math.round(this.points / 10));
    const moves = {
      ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1,
      PageDown: -far, PageUp: far, Home: -this.points, End: this.points,
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.show(this.cursor + moves[event.key]);
  }

  // Replace the marks, such as the window that a slider has chosen.
  mark(marks) {
    this.spec.marks = marks;
    if (this.width) this.draw(this.width);
  }

  draw(width) {
    const { spec } = this;
    const height = spec.height ?? 220;
    this.width = width;
    const edge = { left: 46, right: spec.right ? 46 : 12, top: 18, bottom: 36 };
    const xScale = spec.x.scale ?? 'linear';
    const yScale = spec.y.scale ?? 'linear';
    const ys = spec.lines.flatMap((l) => l.ys);
    const xRange = spec.x.range ?? extent(spec.lines.flatMap((l) => l.xs), xScale);
    const yRange = spec.y.range ?? extent(ys, yScale);
    this.x = axis(xScale, xRange, [edge.left, width - edge.right]);
    this.y = axis(yScale, yRange, [height - edge.bottom, edge.top]);
    this.svg.setAttribute('width', width);
    this.svg.setAttribute('height', height);
    this.box = { ...edge, width, height };
    this.cursorMark = shape('line', { class: 'cursor', y1: edge.top, y2: height - edge.bottom });
    this.svg.replaceChildren(
      ...this.grid(SCALES[yScale].ticks(...yRange, 4)),
      ...this.foot(SCALES[xScale].ticks(...xRange, Math.max(3, width / 90))),
      ...(spec.marks ?? []).flatMap((m) => this.drawnMark(m)),
      ...spec.lines.flatMap((l) => this.line(l)),
      this.cursorMark,
    );
    this.place();
  }

  place() {
    if (!this.cursorMark || !this.points) return;
    const x = this.x(this.spec.lines[0].xs[this.cursor]);
    this.cursorMark.setAttribute('x1', x);
    this.cursorMark.setAttribute('x2', x);
  }

  grid(ticks) {
    const { left, right, top, width } = this.box;
    const { y: { scale, label, format = scale === 'log' ? power : number }, right: second } = this.spec;
    const parts = ticks.flatMap((v) => {
      const y = this.y(v);
      const text = shape('text', { class: 'tick', x: left - 6, y: y + 4, 'text-anchor': 'end' });
      text.textContent = format(v);
      const found = [shape('line', { class: 'grid', x1: left, x2: width - right, y1: y, y2: y }), text];
      if (second) {
        const other = shape('text', { class: 'tick', x: width - right + 6, y: y + 4 });
        other.textContent = number(second.of(v));
        found.push(other);
      }
      return found;
    });
    const name = shape('text', { class: 'axis', x: 0, y: top - 7 });
    name.textContent = label;
    parts.push(name);
    if (second) {
      const other = shape('text', { class: 'axis', x: width, y: top - 7, 'text-anchor': 'end' });
      other.textContent = second.label;
      parts.push(other);
    }
    return parts;
  }

  foot(ticks) {
    const { left, right, width, height, bottom } = this.box;
    const { format = number, label } = this.spec.x;
    const parts = ticks.map((v) => {
      const text = shape('text', { class: 'tick', x: this.x(v), y: height - bottom + 16, 'text-anchor': 'middle' });
      text.textContent = format(v);
      return text;
    });
    const name = shape('text', { class: 'axis', x: (left + width - right) / 2, y: height - 3, 'text-anchor': 'middle' });
    name.textContent = label;
    return [...parts, name];
  }

  drawnMark(mark) {
    const { left, right, top, bottom, width, height } = this.box;
    const name = shape('text', { class: 'mark' });
    name.textContent = mark.label;
    if ('y' in mark) {
      const y = this.y(mark.y);
      if (!(y >= top && y <= height - bottom)) return [];
      fill(name, { x: width - right - 4, y: y - 5, 'text-anchor': 'end' }, []);
      return [shape('line', { class: 'mark', x1: left, x2: width - right, y1: y, y2: y }), name];
    }
    const x = this.x(mark.x);
    const isLeft = x > (width + left) / 2;
    fill(name, { x: x + (isLeft ? -5 : 5), y: top + 10, 'text-anchor': isLeft ? 'end' : 'start' }, []);
    const shade = mark.shade
      ? [shape('rect', { class: 'shade', x, y: top, width: Math.max(0, width - right - x), height: height - top - bottom })]
      : [];
    return [...shade, shape('line', { class: 'mark', x1: x, x2: x, y1: top, y2: height - bottom }), name];
  }

  line({ xs, ys, look, margins }) {
    const least = this.spec.y.range?.[0] ?? (this.spec.y.scale === 'log' ? Number.MIN_VALUE : -Infinity);
    const fits = (v) => Number.isFinite(v) && v >= least;
    const floor = this.box.height - this.box.bottom;
    const spot = (i, v) =>
      `${this.x(xs[i]).toFixed(1)},${(fits(v) ? clamp(this.y(v), 0, floor) : floor).toFixed(1)}`;
    const parts = [];
    if (margins) {
      const upper = ys.map((v, i) => spot(i, v + margins[i]));
      const lower = ys.map((v, i) => spot(i, v - margins[i])).reverse();
      parts.push(shape('polygon', { class: 'band', points: [...upper, ...lower].join(' ') }));
    }
    const whole = ys.map((v, i) => (fits(v) ? spot(i, v) : '')).filter(Boolean);
    parts.push(shape('polyline', { class: `line ${look}`, points: whole.join(' ') }));
    if (look.includes('dots')) {
      parts.push(...whole.map((p) => {
        const [cx, cy] = p.split(',');
        return shape('circle', { class: look, cx, cy, r: 3 });
      }));
    }
    return parts;
  }
}
