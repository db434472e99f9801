// The map of all pairs (t, k): how much of the error of output t reaches step k.

const DECADES = 6;
const MOST_PIXELS = 520;

function paint(canvas, norms, largest) {
  const { rows } = norms.table;
  canvas.width = rows;
  canvas.height = rows;
  const context = canvas.getContext('2d');
  const image = context.createImageData(rows, rows);
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column <= row; column += 1) {
      const value = norms.cell(row, column);
      const pixel = 4 * ((rows - 1 - row) * rows + column); // t grows upwards
      const strength = level(value, largest, DECADES);
      image.data.set([...colour(strength), strength > 0 ? 255 : 0], pixel);
    }
  }
  context.putImageData(image, 0, 0);
}

function legend(largest) {
  const bar = element('canvas', { width: 180, height: 1, 'aria-hidden': 'true' });
  const context = bar.getContext('2d');
  for (let x = 0; x < 180; x += 1) {
    context.fillStyle = `rgb(${colour(x / 179).join()})`;
    context.fillRect(x, 0, 1, 1);
  }
  return element('p', { class: 'legend' }, number(largest * 10 ** -DECADES), bar, number(largest));
}

function drawMap(host, flow) {
  const norms = new Norms(flow.norms);
  const { rows, steps } = norms.table;
  const largest = norms.values.reduce((a, b) => Math.max(a, b), 0);
  const canvas = element('canvas', {
    role: 'application', tabindex: 0, 'data-told': 'map-canvas',
    'aria-label': `Map of gradient norms, outputs upwards, earlier steps to the right, `
      + `${rows} by ${rows}. Arrow keys move the place that is read.`,
  });
  const told = element('p', { class: 'readout', 'aria-live': 'polite', 'data-told': 'map' });
  const key = element('div');
  const corner = element('div', { class: 'map' },
    element('span', { class: 'up' }, `output t, to ${steps - 1}`), canvas,
    element('span', { class: 'along' }, `step k, to ${steps - 1}`));
  host.append(corner, told, key);
  const spot = { row: rows - 1, column: rows - 1 };
  const range = (cell) => {
    const [from, to] = [cell * norms.each, Math.min((cell + 1) * norms.each, steps) - 1];
    return from === to ? `${from}` : `${from} to ${to}`;
  };
  const show = (row, column) => {
    spot.row = clamp(row, 0, rows - 1);
    spot.column = clamp(column, 0, spot.row);
    const value = norms.cell(spot.row, spot.column);
    const most = norms.each > 1 ? 'at most ' : '';
    told.textContent = `Output t = ${range(spot.row)}, step k = ${range(spot.column)}: ${most}${number(value)}.`;
  };
  canvas.addEventListener('pointermove', (event) => {
    const box = canvas.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * rows);
    const row = rows - 1 - Math.floor(((event.clientY - box.top) / box.height) * rows);
    if (column <= row) show(row, column);
  });
  canvas.addEventListener('keydown', (event) => {
    const far = event.shiftKey ? 10 : 1;
    const moves = { ArrowUp: [far, 0], ArrowDown: [-far, 0], ArrowRight: [0, far], ArrowLeft: [0, -far] };
    if (!(event.key in moves)) return;
    event.preventDefault();
    show(spot.row + moves[event.key][0], spot.column + moves[event.key][1]);
  });
  show(rows - 1, Math.max(0, rows - 1 - Math.round(flow.horizon / norms.each)));
  whenever(host, (width) => {
    const side = Math.min(width, MOST_PIXELS);
    canvas.style.width = `${side}px`;
    canvas.style.height = `${side}px`;
    paint(canvas, norms, largest);
    key.replaceChildren(legend(largest));
  });
}
