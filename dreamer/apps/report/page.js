"use strict";
// Draws the panels with plotly. Without it, or before it is unpacked, the page shows the same panels as plain SVG.
(async () => {
  const panels = JSON.parse(document.getElementById("panels").textContent);
  const controls = document.querySelector(".controls");
  const buttons = [...document.querySelectorAll(".legend button")];
  const touch = matchMedia("(pointer: coarse)").matches;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const plots = [...document.querySelectorAll(".plot")];

  async function unpack() {
    const text = atob(document.getElementById("library").textContent.trim());
    const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
    const source = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(source).text();
    document.head.append(script);
  }

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  // plotly reads tags in texts.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  function faded(color, opacity) {
    const part = (from) => parseInt(color.slice(from, from + 2), 16);
    return `rgba(${part(1)},${part(3)},${part(5)},${opacity})`;
  }

  // An exponential moving average that begins at the first value, without a pull to zero.
  function smoothed(values, weight) {
    let sum = 0, total = 0;
    return values.map((value) => {
      sum = weight * sum + (1 - weight) * value;
      total = weight * total + (1 - weight);
      return sum / total;
    });
  }

  function band(x, low, high, color, opacity) {
    return {
      x: [...x, ...[...x].reverse()], y: [...high, ...[...low].reverse()], fill: "toself", mode: "lines",
      line: { width: 0 }, fillcolor: faded(color, opacity), hoverinfo: "skip",
    };
  }

  function traces(line, weight, bands) {
    const color = css(line.color), dash = line.dash, main = line.main;
    const faint = (points, opacity) => ({
      ...points, mode: "lines", line: { color: faded(color, opacity), width: 1, dash }, hoverinfo: "skip",
    });
    if (!main) {
      const mode = "lines+markers";
      return line.seeds.map((points) => ({ ...points, name: plain(line.name), mode, line: { color, width: 1, dash } }));
    }
    const found = [];
    if (line.std && /both|episodes/.test(bands)) {
      const at = (sign) => main.y.map((value, place) => value + sign * line.std[place]);
      found.push(band(main.x, at(-1), at(1), color, 0.1));
    }
    found.push(...line.seeds.map((points) => faint(points, 0.3)));
    if (line.low && /both|seeds/.test(bands)) found.push(band(main.x, line.low, line.high, color, 0.22));
    if (weight) found.push(faint(main, 0.4));
    if (line.mean && !weight) {
      found.push({ x: main.x, y: line.mean, mode: "lines", line: { color, width: 1.2, dash: "dot" }, hoverinfo: "skip" });
    }
    const short = (value) => Number(value.toPrecision(4)).toLocaleString("en");
    found.push({
      x: main.x, y: weight ? smoothed(main.y, weight) : main.y, name: plain(line.name),
      mode: main.x.length < 3 ? "lines+markers" : "lines", marker: { size: 8, color }, cliponaxis: main.x.length > 2,
      line: { color, width: line.published || !line.seeds.length ? 1.6 : 2.4, dash },
      text: main.x.map((_, place) => {
        if (line.low) return ` (${short(line.low[place])} to ${short(line.high[place])})`;
        return line.std ? ` ± ${short(line.std[place])}` : "";
      }),
      hovertemplate: "%{y:,.4~g}%{text}",
    });
    return found;
  }

  function layout(panel) {
    const ink = css("soft"), grid = css("grid"), level = css("p0");
    const axis = { color: ink, gridcolor: grid, linecolor: grid, zeroline: false, fixedrange: touch, automargin: true };
    return {
      height: 316, margin: { l: 44, r: 14, t: 26, b: 44 }, showlegend: false, font: { color: ink, size: 12 },
      paper_bgcolor: css("card"), plot_bgcolor: css("card"), dragmode: touch ? false : "zoom",
      modebar: { bgcolor: "rgba(0,0,0,0)", color: level, activecolor: ink }, hovermode: "x unified", hoverlabel: { bgcolor: css("paper"), bordercolor: grid, font: { color: css("ink") },
        namelength: 28 },
      xaxis: { ...axis, range: panel.x, title: { text: panel.xLabel, standoff: 8 }, tickformat: "~s", nticks: 7,
        hoverformat: ",.0f", unifiedhovertitle: { text: `%{x:,.0f} ${panel.xLabel.split(" (")[0]}` } },
      yaxis: { ...axis, range: panel.y, nticks: 7, exponentformat: "e" },
      shapes: panel.levels.map(({ value }) => ({
        type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value, layer: "below",
        line: { color: level, width: 1, dash: "dot" },
      })),
      annotations: panel.levels.map(({ text, value, above }) => ({
        text: plain(text), xref: "paper", x: 1, xanchor: "right", y: value, yanchor: above ? "bottom" : "top",
        showarrow: false, font: { size: 11, color: level }, borderpad: 1,
      })),
    };
  }

  // The charts of a sweep: each function returns the traces, and what differs from the layout of a panel.
  const charts = {
    heat: (chart) => ({
      data: [{
        type: "heatmap", x: chart.x.map((_, place) => place), y: chart.y.map((_, place) => place), z: chart.means,
        text: chart.cells, texttemplate: chart.x.length > 8 ? "" : "%{text}", hoverongaps: false, xgap: 1, ygap: 1,
        colorscale: chart.scale.map((color, place) => [place / (chart.scale.length - 1), color]),
        colorbar: { thickness: 12, outlinewidth: 0, tickfont: { color: css("soft") } },
        hovertext: chart.y.map((y) => chart.x.map((x) => plain(`${chart.x_label}=${x}, ${chart.y_label}=${y}`))),
        hovertemplate: "%{hovertext}<br>%{text}<extra></extra>",
      }],
      xaxis: { title: { text: plain(chart.x_label), standoff: 8 }, ...categories(chart.x), showgrid: false },
      yaxis: { title: { text: plain(chart.y_label), standoff: 8 }, ...categories(chart.y), showgrid: false },
      height: Math.max(316, 110 + 34 * chart.y.length), hovermode: "closest",
    }),
    scatter: (chart) => ({
      data: [
        { type: "scatter", mode: "markers", x: chart.x, y: chart.y, text: chart.names.map(plain),
          marker: { size: 8, opacity: 0.8, color: css("c0") }, hovertemplate: "%{text}<br>%{x:.4~g}: %{y:,.4~g}<extra></extra>" },
        { type: "scatter", mode: "markers", x: chart.lost, y: chart.lost.map(() => chart.y_bounds[0]), cliponaxis: false,
          marker: { size: 8, symbol: "x", color: css("c1") }, hovertemplate: "%{x:.4~g}: no score<extra></extra>" },
      ],
      xaxis: { title: { text: plain(chart.x_label), standoff: 8 }, type: chart.log ? "log" : "linear", exponentformat: "e" },
      yaxis: { title: { text: "final score", standoff: 8 }, range: chart.y_bounds, exponentformat: "e" },
      hovermode: "closest",
    }),
    parallel: (chart) => {
      const ink = css("soft"), last = chart.scales.length - 1;
      return {
        data: chart.lines.map((line, place) => ({
          type: "scatter", mode: "lines+markers", x: line.at.map((_, number) => number), y: line.at,
          text: line.at.map(() => plain(line.name)), opacity: 0.9, marker: { size: 5, color: line.color },
          line: { color: line.color, width: place === chart.lines.length - 1 ? 3 : 1.2 },
          hovertemplate: "%{text}<extra></extra>",
        })),
        xaxis: { ...categories(chart.scales.map(({ name }) => name)), side: "top", showgrid: false,
          range: [-0.15, last + 0.35] },
        yaxis: { visible: false, range: [-0.05, 1.05] },
        shapes: chart.scales.map((_, place) => ({
          type: "line", x0: place, x1: place, y0: 0, y1: 1, layer: "below", line: { color: ink, width: 1 },
        })),
        annotations: chart.scales.flatMap(({ ticks }, place) => ticks.map(([at, text]) => ({
          x: place, y: at, text: plain(text), xanchor: "left", xshift: 4, showarrow: false, borderpad: 1,
          bgcolor: faded(css("card"), 0.85), font: { size: 11, color: ink },
        }))),
        margin: { l: 14, r: 14, t: 40, b: 14 }, hovermode: "closest",
      };
    },
  };

  const categories = (names) => ({
    tickmode: "array", tickvals: names.map((_, place) => place), ticktext: names.map(plain),
  });

  function chartOf(panel) {
    const { data, xaxis, yaxis, ...more } = charts[panel.kind](panel);
    const base = layout({ x: undefined, y: undefined, xLabel: "", levels: [] });
    const { unifiedhovertitle, hoverformat, tickformat, nticks, ...plainAxis } = base.xaxis;
    return [data, { ...base, ...more, xaxis: { ...plainAxis, ...xaxis }, yaxis: { ...base.yaxis, ...yaxis } }];
  }

  const config = (panel) => ({
    responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
    toImageButtonOptions: { format: "svg", filename: (panel.title ?? `${panel.task} ${panel.metric}`).replace(/\W+/g, "_") },
  });

  async function draw() {
    const weight = Number(controls.querySelector("input").value), bands = controls.querySelector("select").value;
    controls.querySelector("output").value = weight ? weight.toFixed(2) : "off";
    const hidden = new Set(buttons.filter((one) => one.ariaPressed === "false").map((one) => one.dataset.line));
    for (const [number, panel] of panels.entries()) {
      if (plots[number].firstElementChild?.tagName === "svg") plots[number].replaceChildren();
      if (panel.kind) {
        await Plotly.react(plots[number], ...chartOf(panel), config(panel));
        continue;
      }
      const lines = panel.lines.filter((line) => !hidden.has(line.name));
      lines.sort((one, other) => other.published - one.published);
      const data = lines.flatMap((line) => traces(line, weight, bands));
      await Plotly.react(plots[number], data, layout(panel), config(panel));
    }
    document.body.dataset.drawn = "yes";
  }

  await unpack();
  document.body.classList.add("live");
  controls.hidden = false;
  for (const button of buttons) {
    button.addEventListener("click", () => {
      button.ariaPressed = button.ariaPressed === "false" ? "true" : "false";
      draw();
    });
  }
  controls.addEventListener("input", draw);
  dark.addEventListener("change", draw);
  await draw();
})();
