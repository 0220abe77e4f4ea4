// The text: one element per token, on the colour of its expert; arrow keys move between them.

const NAMES = { "\n": "newline", " ": "space", "\t": "tab" };
const LONGEST = 40;

// A token as words, for labels. What lies before the context is one token, which may be long.
export function nameOf(text) {
  if (text.length > LONGEST) return `${nameOf(text.slice(0, LONGEST))}...`;
  return NAMES[text] ?? text.replace(/\n/g, "⏎").replace(/[\udc80-\udcff]/gu, byteName);
}

// The server gives a byte that is no text as a lone surrogate.
function byteName(surrogate) {
  return `\\x${(surrogate.charCodeAt(0) - 0xdc00).toString(16)}`;
}

export class TextView {
  // `choose` is called with the number of a token when it is chosen.
  constructor(element, choose) {
    this.element = element;
    this.choose = choose;
    element.addEventListener("click", (event) => this.onClick(event));
    element.addEventListener("keydown", (event) => this.onKey(event));
    element.addEventListener("focusin", (event) => this.onFocus(event));
    this.clear();
  }

  clear() {
    this.tokens = [];
    this.spans = [];
    this.current = -1;
    this.element.replaceChildren();
  }

  // Each token is {text, layers, following}; `paint` gives the look of one in the shown layer.
  add(tokens, paint, isGiven) {
    for (const token of tokens) {
      const span = document.createElement("span");
      span.className = "token";
      span.classList.toggle("given", isGiven(this.tokens.length));
      span.setAttribute("role", "option");
      span.setAttribute("aria-selected", "false");
      span.tabIndex = this.spans.length ? -1 : 0;
      span.textContent = token.text.replace(/\n/g, "⏎\n");
      span.dataset.number = this.tokens.length;
      this.tokens.push(token);
      this.spans.push(span);
      this.colour(span, token, paint);
      this.element.append(span);
    }
  }

  repaint(paint) {
    this.spans.forEach((span, number) => this.colour(span, this.tokens[number], paint));
  }

  colour(span, token, paint) {
    const look = paint(token);
    span.style.background = look ? look.colour : "";
    span.style.color = look ? look.ink : "";
    span.classList.toggle("unread", token.layers.length === 0);
    if (look) span.dataset.expert = look.expert;
    else delete span.dataset.expert;
    const who = look ? `, expert ${look.expert}` : token.layers.length ? "" : ", not read";
    span.setAttribute("aria-label", `${nameOf(token.text)}${who}`);
  }

  onClick(event) {
    const span = event.target.closest(".token");
    if (span) span.focus();
  }

  onFocus(event) {
    const number = Number(event.target.dataset.number);
    if (Number.isNaN(number)) return;
    const before = this.spans[this.current] ?? this.spans[0];
    before.tabIndex = -1;
    before.setAttribute("aria-selected", "false");
    event.target.tabIndex = 0;
    event.target.setAttribute("aria-selected", "true");
    this.current = number;
    this.choose(number);
  }

  onKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const from = Number(event.target.dataset.number);
    const moves = {
      ArrowRight: () => from + 1,
      ArrowLeft: () => from - 1,
      ArrowDown: () => this.nextLine(from, 1),
      ArrowUp: () => this.nextLine(from, -1),
      Home: () => 0,
      End: () => this.spans.length - 1,
    };
    const to = moves[event.key]?.();
    if (to === undefined) return;
    event.preventDefault();
    this.spans[to]?.focus();
  }

  // The token that stands nearest in the line below (1) or above (-1).
  nextLine(from, step) {
    const place = (number) => this.spans[number].getClientRects()[0];
    const start = place(from);
    let best = from;
    let line = null;
    for (let number = from + step; number >= 0 && number < this.spans.length; number += step) {
      const here = place(number);
      if (!here || Math.abs(here.top - start.top) < start.height / 2) continue;
      line ??= here.top;
      if (Math.abs(here.top - line) > start.height / 2) break;
      const isNearer = best === from || distance(here, start) < distance(place(best), start);
      if (isNearer) best = number;
    }
    return best;
  }
}

function distance(here, there) {
  return Math.abs(here.left - there.left);
}
