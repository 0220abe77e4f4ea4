// The panels beside the text: who read a token, what may follow it, and the load of the experts.

import { nameOf } from "./text.js";

const percent = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1 });

// A line with a name, a bar and its share; `look` colours the bar as an expert.
function bar(name, share, look) {
  const line = document.createElement("li");
  const label = document.createElement("span");
  label.className = "name";
  label.textContent = name;
  const track = document.createElement("div");
  track.className = "track";
  track.setAttribute("aria-hidden", "true");
  const fill = document.createElement("div");
  fill.className = "fill";
  fill.style.width = `${Math.min(100, 100 * share)}%`;
  if (look) fill.style.background = look.colour;
  track.append(fill);
  const value = document.createElement("span");
  value.className = "value";
  value.textContent = percent.format(share);
  line.append(label, track, value);
  return line;
}

export function showToken(token, number, lookOf) {
  document.querySelector("#hint").hidden = true;
  document.querySelector("#chosen").hidden = false;
  const quoted = nameOf(token.text);
  document.querySelector("#place").textContent = `Token ${number + 1}: ${quoted}`;
  const experts = document.querySelector("#experts");
  experts.replaceChildren();
  token.layers.forEach((layer, index) => {
    const title = document.createElement("h3");
    title.textContent = layer ? `Layer ${index}` : `Layer ${index}: dense`;
    experts.append(title);
    if (!layer) return;
    const bars = document.createElement("ol");
    bars.className = "bars";
    layer.experts.forEach((expert, rank) => {
      bars.append(bar(`expert ${expert}`, layer.weights[rank], lookOf(expert)));
    });
    experts.append(bars);
  });
  if (token.layers.length === 0) {
    experts.textContent = "The model does not read it: it lies before the context.";
  }
  const lines = token.following.map(({ text, probability }) => bar(nameOf(text), probability));
  document.querySelector("#following").replaceChildren(...lines);
}

export function hideToken() {
  document.querySelector("#hint").hidden = false;
  document.querySelector("#chosen").hidden = true;
}

// Counts which experts were chosen, in each layer.
export class Loads {
  constructor(layers, experts) {
    this.counts = Array.from({ length: layers }, () => new Array(experts).fill(0));
  }

  add(tokens) {
    for (const token of tokens) {
      token.layers.forEach((layer, index) => {
        for (const expert of layer?.experts ?? []) this.counts[index][expert] += 1;
      });
    }
  }

  show(layer, lookOf) {
    const counts = this.counts[layer];
    const total = counts.reduce((sum, count) => sum + count, 0);
    document.querySelector("#load-note").textContent =
      `Share of the choices in layer ${layer} so far; even would be ` +
      `${percent.format(1 / counts.length)} each.`;
    const lines = counts.map((count, expert) =>
      bar(`expert ${expert}`, total ? count / total : 0, lookOf(expert)),
    );
    document.querySelector("#loads").replaceChildren(...lines);
  }
}
