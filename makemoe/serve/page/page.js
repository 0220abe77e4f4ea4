// The page: takes what the user asks for, and shows what comes.

import { hideToken, Loads, showToken } from "./panels.js";
import { about, complete, rememberToken, takeTokenFromAddress } from "./stream.js";
import { TextView } from "./text.js";

const $ = (id) => document.getElementById(id);

const NUMBERS = ["top_k", "top_p", "max_tokens", "seed"];

let model = null;
let layer = null;
let loads = null;
let running = null;
let redraw = false;

const lookOf = (expert) => ({ expert, colour: model.colours[expert], ink: model.inks[expert] });

// How a token looks in the chosen layer: its first expert's colour; null if no expert read it.
const paint = (token) => {
  const choice = layer === null ? null : token.layers[layer];
  return choice ? lookOf(choice.experts[0]) : null;
};

const view = new TextView($("text"), (number) => showToken(view.tokens[number], number, lookOf));

function tell(message, isWrong = false) {
  $("status").textContent = message;
  $("status").classList.toggle("wrong", isWrong);
}

function showLoads() {
  if (layer !== null) loads.show(layer, lookOf);
}

// The bars change with every token, but are drawn once per frame.
function showLoadsSoon() {
  if (redraw) return;
  redraw = true;
  requestAnimationFrame(() => {
    redraw = false;
    showLoads();
  });
}

function chooseLayer(number) {
  layer = number;
  view.repaint(paint);
  showLoads();
}

function offerLayers() {
  for (const label of $("layers").querySelectorAll("label")) label.remove();
  for (const number of model.routed) {
    const label = document.createElement("label");
    const choice = document.createElement("input");
    choice.type = "radio";
    choice.name = "layer";
    choice.value = number;
    choice.checked = number === layer;
    choice.addEventListener("change", () => chooseLayer(number));
    label.append(choice, ` ${number}`);
    $("layers").append(label);
  }
}

async function begin() {
  try {
    model = await about();
  } catch (error) {
    $("login").hidden = error.status !== 401;
    tell(error.message, true);
    return;
  }
  $("login").hidden = true;
  tell("");
  layer = model.routed.length ? model.routed[0] : null;
  loads = new Loads(model.layers, model.experts);
  const experts = layer === null ? "dense" : `${model.top_k} of ${model.experts} experts per token`;
  const size = `${(model.parameters / 1e6).toFixed(1)} M parameters`;
  $("model").textContent = `${model.model}: ${model.layers} layers, ${experts}, ${size}`;
  $("max_tokens").max = model.max_tokens;
  $("max_tokens").value = Math.min(300, model.max_tokens);
  $("controls").hidden = $("load").hidden = layer === null;
  offerLayers();
  showLoads();
}

function asked() {
  const fields = { prompt: $("prompt").value, temperature: Number($("temperature").value) };
  for (const name of NUMBERS) {
    if ($(name).value !== "") fields[name] = Number($(name).value);
  }
  return fields;
}

async function write() {
  running?.abort();
  const mine = (running = new AbortController());
  view.clear();
  hideToken();
  loads = new Loads(model.layers, model.experts);
  $("empty").hidden = true;
  $("stop").disabled = false;
  tell("Writing ...");
  const fields = asked();
  let given = fields.prompt.length;
  let seed = null;
  try {
    for await (const chunk of complete(fields, mine.signal)) {
      seed = chunk.seed;
      const tokens = chunk.choices[0].experts;
      loads.add(tokens);
      // A token without text ends inside a character, which the next one completes.
      for (const token of tokens.filter((one) => one.text !== "")) {
        view.add([token], paint, () => given > 0);
        given -= token.text.length;
      }
      showLoadsSoon();
    }
    tell(`Done: ${view.tokens.length} tokens with seed ${seed}.`);
  } catch (error) {
    if (running !== mine) return;
    if (error.name === "AbortError") tell(`Stopped after ${view.tokens.length} tokens.`);
    else tell(error.message, true);
    $("login").hidden = error.status !== 401;
  } finally {
    if (running === mine) {
      running = null;
      $("stop").disabled = true;
      $("empty").hidden = view.tokens.length > 0;
    }
  }
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (model) write();
});

$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit();
});

$("stop").addEventListener("click", () => running?.abort());

$("temperature").addEventListener("input", () => {
  $("warmth").textContent = Number($("temperature").value).toFixed(2);
});

$("numbers").addEventListener("change", () => {
  $("text").classList.toggle("numbered", $("numbers").checked);
});

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  rememberToken($("token").value);
  begin();
});

takeTokenFromAddress();
begin();
