// Every figure has a place in the page; what it needs may be missing.

function start() {
  const together = document.querySelector('[data-draw="together"]');
  if (together) drawTogether(together, page.runs);
  for (const article of document.querySelectorAll('article[data-run]')) {
    const run = page.runs[Number(article.dataset.run)];
    const within = (name, draw) => {
      const host = article.querySelector(`[data-draw="${name}"]`);
      if (host) draw(host);
    };
    within('curves', (host) => drawCurves(host, run.curves));
    within('truncation', (host) => drawLags(host, run.flow));
    within('map', (host) => drawMap(host, run.flow));
    within('error', (host) => drawError(host, run));
    within('spectra', (host) => drawSpectra(host, run.flow));
    article.querySelectorAll('[data-histogram]').forEach((host) =>
      drawHistogram(host, run.activity[Number(host.dataset.histogram)]));
  }
}

start();
