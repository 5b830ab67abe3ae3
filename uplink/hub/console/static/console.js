// The live chart, and the note that the connection to the hub is gone.
// Everything else on these pages is HTML that the hub sends.
"use strict";

(() => {
  const link = document.getElementById("link");
  const lost = () => { link.textContent = "◌ connection to the hub lost, trying again"; };
  const back = () => { link.textContent = ""; };
  document.addEventListener("htmx:sse:error", lost);
  document.addEventListener("htmx:sse:after:connection", back);
  document.addEventListener("htmx:sse:after:message", back);

  const el = document.getElementById("chart");
  if (!el) return;

  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  // Eight colours that differ in lightness, too, for both schemes.
  const colours = () => dark.matches
    ? ["#6cb4ff", "#ffb454", "#7bd88f", "#ff8fa3", "#c4a7ff", "#5fd3d3", "#e6e07a", "#c9b29b"]
    : ["#0b62b8", "#b85c00", "#17783c", "#b3213f", "#6b3fc0", "#00757a", "#7a6a00", "#75523a"];
  const dash = [[], [6, 4], [2, 3], [10, 4], [8, 3, 2, 3], [4, 2], [12, 3], [1, 3]];
  const number = v => v == null ? "–" : Math.abs(v) >= 1000 ? v.toFixed(0) : String(+v.toPrecision(4));

  // uPlot's own times are those of one country: ISO dates and 24 hours instead.
  // Columns: least distance of two ticks in s, label, and what is added when the
  // year, month, day, hour, minute or second changes.
  const day = "\n{YYYY}-{MM}-{DD}";
  const times = [
    [31536000, "{YYYY}", null, null, null, null, null, null, 1],
    [2419200, "{YYYY}-{MM}", null, null, null, null, null, null, 1],
    [86400, "{MM}-{DD}", "\n{YYYY}", null, null, null, null, null, 1],
    [60, "{HH}:{mm}", day, null, day, null, null, null, 1],
    [1, "{HH}:{mm}:{ss}", day, null, day, null, null, null, 1],
    [0.001, ":{ss}.{fff}", day + " {HH}:{mm}", null, day + " {HH}:{mm}", null, "\n{HH}:{mm}", null, 1],
  ];

  // Keys of one topic often share their ends: site/a/T01/x, site/a/T02/x are
  // T01 and T02 in a legend.
  const labels = keys => {
    if (keys.length < 2) return keys;
    const parts = keys.map(k => k.split("/"));
    const least = Math.min(...parts.map(p => p.length));
    let head = 0, tail = 0;
    while (head < least - 1 && parts.every(p => p[head] === parts[0][head])) head++;
    while (tail < least - 1 - head && parts.every(p => p.at(-1 - tail) === parts[0].at(-1 - tail))) tail++;
    return parts.map(p => p.slice(head, p.length - tail).join("/"));
  };

  let plot, shape = "", latest;

  const options = d => {
    const grid = { stroke: css("--line"), width: 1 };
    const axis = { stroke: css("--soft"), grid, ticks: grid };
    const c = colours(), names = labels(d.series.map(s => s.key));
    return {
      width: el.clientWidth - 16, height: el.clientWidth < 500 ? 240 : 320,
      tzDate: ts => uPlot.tzDate(new Date(ts * 1e3), "Etc/UTC"),
      cursor: { drag: { x: true, y: false } },
      scales: { x: { time: true } },
      axes: [{ ...axis, values: times }, { ...axis, size: 62 }],
      series: [{ label: "Time (UTC)", value: "{YYYY}-{MM}-{DD} {HH}:{mm}:{ss}" }, ...d.series.map((s, i) => ({
        label: names[i], stroke: c[i % 8], dash: dash[i % 8], width: 1.6,
        points: { show: d.times.length < 60, size: 5, fill: css("--panel") }, value: (_, v) => number(v),
      }))],
    };
  };

  const draw = d => {
    latest = d;
    const data = [d.times, ...d.series.map(s => s.mean)];
    const now = JSON.stringify([d.field, d.series.map(s => s.key), dark.matches, d.times.length < 60]);
    if (plot && now === shape) plot.setData(data);
    else {
      if (plot) plot.destroy();
      shape = now;
      plot = new uPlot(options(d), data, el);
    }
    document.getElementById("chart-note").textContent = d.series.length === 0
      ? "No readings in view."
      : `Mean of each ${number(d.bucket_seconds)} s` + (d.others ? `; ${d.others}${d.others >= 1000 ? " or more" : ""} further keys are not drawn` : "") + ". Gaps are times without a reading.";
    const body = document.getElementById("chart-table");
    body.replaceChildren(...d.series.map(s => {
      const tr = document.createElement("tr");
      const th = document.createElement("th");
      th.scope = "row";
      th.textContent = s.key;
      tr.append(th, ...[s.last, s.min, s.max].map(v => {
        const td = document.createElement("td");
        td.className = "n";
        td.textContent = number(v);
        return td;
      }));
      return tr;
    }));
  };

  const q = new URLSearchParams({ field: el.dataset.field, span: el.dataset.span });
  const events = new EventSource(el.dataset.events + "?" + q);
  events.addEventListener("chart", e => { back(); draw(JSON.parse(e.data)); });
  events.onerror = lost;
  new ResizeObserver(() => {
    if (plot) plot.setSize({ width: el.clientWidth - 16, height: el.clientWidth < 500 ? 240 : 320 });
  }).observe(el);
  dark.addEventListener("change", () => { if (latest) draw(latest); });
})();
