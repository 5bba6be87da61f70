// Draws <figure class="chart"> from the table in it, which is what screen readers and browsers without script get.
//
//   <figure class="chart" data-kind="stack|lines" aria-label="…">
//     … <table> head: first the time, then a column a series; body: a row a time, cells with data-v (a number) … </table>
"use strict";

(() => {
  const height = () => (innerWidth < 600 ? 220 : 280);
  const drawn = new Set();

  function read(figure) {
    const table = figure.querySelector("table");
    const names = [...table.tHead.rows[0].cells].slice(1).map((cell) => cell.textContent.trim());
    const rows = [...table.tBodies[0].rows];
    const labels = rows.map((row) => row.cells[0].textContent.trim());
    const ticks = rows.map((row) => row.cells[0].dataset.tick || row.cells[0].textContent.trim());
    const values = names.map((_, n) => rows.map((row) => Number(row.cells[n + 1].dataset.v)));
    const shown = names.map((_, n) => rows.map((row) => row.cells[n + 1].textContent.trim()));
    return { names, labels, ticks, values, shown, scale: Number(figure.dataset.scale || 1) };
  }

  const colour = (name) => {
    const probe = document.createElement("i");
    // Where people's own colours replace ours, axes have theirs; series would all have the same one.
    if (name.startsWith("series")) probe.style.forcedColorAdjust = "none";
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  };

  // Steps of an axis that counts: there is no half an event.
  const whole = [...Array(14).keys()].flatMap((power) => [1, 2, 5].map((step) => step * 10 ** power));
  // As `number` in rendering.py: exact up to 999,999.
  const exact = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
  const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 });
  const written = (value) => (Math.abs(value) < 1e6 ? exact : short).format(value);

  function draw(figure) {
    const data = read(figure);
    if (!data.labels.length || !data.names.length) return;
    const stacked = figure.dataset.kind === "stack";
    // Stacked: each series is drawn as the sum of it and those below, the highest first, so that the lower cover it.
    let columns = data.values.map((column) => column.map((v) => v / data.scale));
    if (stacked) {
      for (let n = 1; n < columns.length; n++) columns[n] = columns[n].map((v, i) => v + columns[n - 1][i]);
    }
    const order = columns.map((_, n) => n);
    if (stacked) order.reverse();
    const few = data.labels.length <= 120;
    const bars = uPlot.paths.bars({ size: [0.8, 48], align: 0 });
    const line = uPlot.paths.linear();
    const ink = colour("quiet");
    const grid = colour("line");
    let plot = figure.querySelector(".plot");
    if (!plot) {
      plot = document.createElement("div");
      plot.className = "plot";
      plot.tabIndex = 0;
      plot.setAttribute("role", "group");
      plot.setAttribute("aria-roledescription", "chart");
      plot.setAttribute("aria-label", `${figure.getAttribute("aria-label")}. Left and right arrow keys read it point by point.`);
      figure.querySelector("table").closest("details").before(plot);
    }
    plot.textContent = "";
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;

    const chart = new uPlot(
      {
        width: plot.clientWidth,
        height: height(),
        legend: { show: false },
        padding: [8, 8, 0, 0],
        cursor: { y: false, points: { show: !stacked }, drag: { x: false, y: false } },
        scales: {
          x: { time: false, range: () => [-0.6, data.labels.length - 0.4] },
          y: { range: (_u, low, high) => [Math.min(0, low * 1.05), high > 0 ? high * 1.06 : low < 0 ? 0 : 1] },
        },
        axes: [
          {
            stroke: ink, grid: { show: false }, ticks: { show: false }, space: 64, size: 32,
            incrs: [1, 2, 3, 4, 6, 7, 12, 14, 24, 28, 48, 60, 90, 120, 180, 360],
            values: (_u, splits) => splits.map((i) => data.ticks[i] ?? ""),
          },
          {
            stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { show: false }, size: 56, space: 44,
            incrs: data.scale > 1 ? undefined : whole,
            values: (_u, splits) => splits.map((v) => (v === 0 || Math.abs(v) >= 1 || data.scale > 1 ? written(v) : "")),
          },
        ],
        series: [
          {},
          ...order.map((n) => {
            const stroke = colour(`series-${(n % 8) + 1}`);
            return stacked && few
              ? { stroke, fill: stroke, width: 0, paths: bars, points: { show: false } }
              : { stroke, fill: stacked ? stroke : undefined, width: stacked ? 0 : 2, paths: line, points: { show: !stacked && data.labels.length < 32, size: 5, fill: stroke } };
          }),
        ],
        hooks: { setCursor: [(u) => point(u.cursor.left >= 0 ? u.posToIdx(u.cursor.left) : null)] },
      },
      [data.labels.map((_, i) => i), ...order.map((n) => columns[n])],
      plot,
    );
    plot.append(tip);

    function point(index) {
      if (index === null || index === undefined || data.labels[index] === undefined) {
        tip.hidden = true;
        return;
      }
      if (tip.dataset.index !== String(index)) {
        tip.dataset.index = index;
        const title = document.createElement("strong");
        title.textContent = data.labels[index];
        const lines = data.names
          .map((name, n) => ({ name, n, value: data.values[n][index], text: data.shown[n][index] }))
          .filter((entry) => entry.value !== 0 || data.names.length < 4)
          .map((entry) => {
            const item = document.createElement("span");
            const swatch = document.createElement("i");
            swatch.className = `swatch series-${(entry.n % 8) + 1}`;
            item.append(swatch, ` ${entry.name} `, Object.assign(document.createElement("b"), { textContent: entry.text }));
            return item;
          });
        tip.replaceChildren(title, ...lines);
      }
      tip.hidden = false;
      const x = chart.valToPos(index, "x") + chart.bbox.left / devicePixelRatio;
      const right = x + tip.offsetWidth + 16 > plot.clientWidth;
      tip.style.left = `${Math.max(0, right ? x - tip.offsetWidth - 12 : x + 12)}px`;
    }

    let index = -1;
    plot.onkeydown = (event) => {
      const last = data.labels.length - 1;
      const to = { ArrowRight: Math.min(last, index + 1), ArrowLeft: Math.max(0, index < 0 ? last : index - 1), Home: 0, End: last }[event.key];
      if (event.key === "Escape") {
        index = -1;
        tip.hidden = true;
      }
      if (to === undefined) return;
      event.preventDefault();
      index = to;
      chart.setCursor({ left: chart.valToPos(index, "x"), top: 10 });
      point(index);
      say(`${data.labels[index]}: ` + data.names.map((name, n) => `${name} ${data.shown[n][index]}`).join(", "));
    };
    plot.onblur = () => (tip.hidden = true);
    figure.chart = chart;
    drawn.add(figure);
  }

  function drawAll(root) {
    for (const figure of root.querySelectorAll("figure.chart")) if (!drawn.has(figure)) draw(figure);
  }

  function redraw() {
    // Of a copy: what is drawn again comes into the set again, and the set would never end.
    for (const figure of [...drawn]) {
      figure.chart.destroy();
      drawn.delete(figure);
      if (figure.isConnected) draw(figure);
    }
  }

  drawAll(document);
  // After a panel arrived, what is in it.
  document.addEventListener("htmx:afterSettle", () => drawAll(document));
  for (const query of ["(prefers-color-scheme: dark)", "(forced-colors: active)"]) matchMedia(query).addEventListener("change", redraw);
  let timer;
  let width = innerWidth;
  addEventListener("resize", () => {
    // Scrolling on a phone changes the height only.
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(timer);
    timer = setTimeout(redraw, 150);
  });
})();
