"use strict";

const $ = (id) => document.getElementById(id);
const FIELDS = {
  prompt: "prompt", negative_prompt: "negative", prompt_syntax: "syntax", model: "model", size: "size", scheduler: "scheduler",
};
const NUMBERS = { num_inference_steps: "steps", guidance_scale: "guidance" };
const NOT_HERE = {
  image: "the picture it was drawn on", lora: "LoRAs", embeddings: "textual inversions", controlnet: "ControlNets",
  ip_adapter: "IP-Adapters", pag_scale: "perturbed attention", vae: "another VAE",
}; // what records may have and the form has not
const MOST_HISTORY = 60;
const MOST_SEED = 1e15; // beyond, numbers here are not exact

let key = sessionStorage.getItem("key");
let drawing = null; // the AbortController of the request that is under way
let budget = null; // bytes that the server may take

const say = (text) => { $("state").textContent = text; };
const inBytes = (count) => (count < 2 ** 30 ? `${Math.round(count / 2 ** 20)} MiB` : `${(count / 2 ** 30).toPrecision(3)} GiB`);
const inSeconds = (s) => (s < 60 ? `${s.toPrecision(2)} s` : `${Math.round(s / 60)} min`);

function element(tag, text, attributes = {}) {
  const made = Object.assign(document.createElement(tag), attributes);
  if (text !== undefined) made.textContent = text; // never as HTML: prompts and records come from anywhere
  return made;
}

/** fetch with the key, which is asked for once; throws what the server says is wrong. */
async function ask(path, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, {
    method: body === undefined ? "GET" : "POST", headers, signal, body: body && JSON.stringify(body),
  });
  if (answer.ok) return answer;
  const told = (await answer.json().catch(() => ({}))).error ?? { message: answer.statusText };
  if (answer.status === 401) {
    const given = window.prompt("The API key of this server");
    if (given) {
      sessionStorage.setItem("key", key = given.trim());
      return ask(path, body, signal);
    }
  }
  throw Object.assign(new Error(told.message), { param: told.param });
}

// -- what is asked for ---------------------------------------------------------------------------

/** The fields of the form. Its seed has 15 digits at most, which a number here holds exactly. */
function fields() {
  const asked = {};
  for (const [name, id] of Object.entries(FIELDS)) if ($(id).value) asked[name] = $(id).value;
  for (const [name, id] of Object.entries(NUMBERS)) if ($(id).value) asked[name] = Number($(id).value);
  if ($("seed").value) asked.seed = Number($("seed").value);
  if (memory() !== null) asked.memory = String(memory());
  return asked;
}

/** Bytes that the slider leaves; null for all. It goes in steps that grow with what there is. */
function memory() {
  const share = Number($("memory").value) / 100;
  if (budget === null || share >= 1) return null;
  const least = Math.min(200 * 2 ** 20, budget / 2);
  return Math.round(least * (budget / least) ** share);
}

const isServed = (model) => [...$("model").options].some((each) => each.value === model);

/** What drawing a recipe with this form leaves out, in words; empty where the same picture comes. */
function leftOut(recipe) {
  const names = Object.keys(NOT_HERE).filter((name) => [recipe[name]].flat().some((each) => each)).map((name) => NOT_HERE[name]);
  if (!isServed(recipe.model)) names.push(`the model ${recipe.model}`);
  if (recipe.seed >= MOST_SEED) names.push("its seed, which is too long");
  return names.length ? `, but the form cannot repeat: ${names.join(", ")}` : "";
}

function fill(recipe) {
  $("prompt").value = recipe.prompt;
  $("negative").value = recipe.negative_prompt;
  $("syntax").value = recipe.prompt_syntax ?? "plain";
  if (isServed(recipe.model)) $("model").value = recipe.model;
  $("size").value = `${recipe.width}x${recipe.height}`;
  $("steps").value = recipe.steps;
  $("guidance").value = recipe.guidance_scale;
  $("seed").value = recipe.seed < MOST_SEED ? recipe.seed : "";
  $("scheduler").value = recipe.scheduler ?? "";
  plan();
}

// -- the plan ------------------------------------------------------------------------------------

let planSoonId = null;
let planning = null; // the AbortController of the plan that was asked for last

function planSoon() {
  clearTimeout(planSoonId);
  planSoonId = setTimeout(plan, 250);
}

async function plan() {
  planning?.abort();
  const { signal } = planning = new AbortController();
  const { model, size, memory: within, num_inference_steps } = fields();
  const asked = Object.fromEntries(
    Object.entries({ model, size, memory: within, num_inference_steps }).filter(([, value]) => value !== undefined));
  $("memory-told").textContent = memory() === null ? "all there is" : inBytes(memory());
  try {
    const told = await (await ask("/v1/plans", asked, signal)).json();
    if (budget === null) budget = told.budget_bytes;
    $("plan-told").textContent =
      `${told.size}: peak ${inBytes(told.peak_bytes)}, about ${inSeconds(told.seconds)}, with ${told.settings}`;
    $("plan-why").replaceChildren(...told.runners_up.flatMap((each) => [
      element("dt", "slower"), element("dd", `${inSeconds(each.seconds)}, ${inBytes(each.peak_bytes)}: ${each.settings}`),
    ]), ...Object.entries(told.unused).flatMap(([name, why]) => [element("dt", name), element("dd", why)]));
  } catch (error) {
    if (signal.aborted) return;
    $("plan-told").textContent = error.message;
    $("plan-why").replaceChildren();
  }
}

// -- drawing -------------------------------------------------------------------------------------

async function draw() {
  if (drawing) return;
  drawing = new AbortController();
  $("draw").disabled = true;
  $("cancel").disabled = false;
  $("now").scrollIntoView({ block: "nearest" });
  say("sent");
  try {
    const answer = await ask("/v1/images/generations", { ...fields(), stream: true, partial_images: 3 }, drawing.signal);
    await listen(answer.body);
  } catch (error) {
    say(error.name === "AbortError" ? "cancelled" : error.message);
    const wrong = Object.entries({ ...FIELDS, ...NUMBERS, seed: "seed" }).find(([name]) => name === error.param);
    if (wrong) $(wrong[1]).focus();
  } finally {
    drawing = null;
    $("draw").disabled = false;
    $("cancel").disabled = true;
  }
}

/** Server-sent events: comments say where the request stands. */
async function listen(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", over = false;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith(":") && !over) say(part.slice(1).trim());
      for (const line of part.split("\n")) if (line.startsWith("data: ")) over = await hear(JSON.parse(line.slice(6)));
    }
  }
}

/** Whether the picture is there. */
async function hear(event) {
  if (event.error) throw new Error(event.error.message);
  const source = `data:image/${event.output_format};base64,${event.b64_json}`;
  const done = event.type.endsWith(".completed");
  show(source, done ? `drawn: ${$("prompt").value}` : "not finished yet");
  if (!done) return false;
  say(`done, seed ${event.seed}`);
  await remember(source, event.b64_json);
  return true;
}

function show(source, alt) {
  const image = element("img", undefined, { alt, src: source });
  $("now").replaceChildren(image);
}

// -- records -------------------------------------------------------------------------------------

/** The record of a picture: what the web UI's text says, and the recipe if it is ours. */
async function recordOf(base64) {
  const { info, items } = await (await ask("/sdapi/v1/png-info", { image: base64 })).json();
  let recipe = null;
  try {
    recipe = JSON.parse(items.leandiffusion).recipe;
  } catch { /* it was drawn by another program */ }
  return { info, recipe };
}

/** Show it, and fill in the form; what the form cannot repeat, in words. */
function showRecord({ info, recipe }) {
  $("record").hidden = false;
  $("record").textContent = info || "This picture does not say how it was drawn.";
  if (!recipe) return "";
  fill(recipe);
  return leftOut(recipe);
}

async function remember(source, base64) {
  const record = await recordOf(base64);
  const entry = element("li");
  const again = (name, change) => {
    const button = element("button", name, { type: "button" });
    button.addEventListener("click", () => {
      if (drawing) return say("another picture is being drawn: cancel it first");
      fill(record.recipe);
      change();
      show(source, record.recipe.prompt);
      draw();
    });
    return button;
  };
  const told = element("button", "How", { type: "button" });
  told.addEventListener("click", () => { show(source, record.recipe.prompt); showRecord(record); $("record").focus(); });
  entry.append(
    element("img", undefined, { src: source, alt: record.recipe.prompt }),
    element("p", `${record.recipe.prompt} · seed ${record.recipe.seed}`),
    again("Draw again", () => {}), again("Vary", () => { $("seed").value = ""; }), told,
    element("a", "Save", { href: source, download: `${record.recipe.seed}.png` }),
  );
  $("history").prepend(entry);
  while ($("history").children.length > MOST_HISTORY) $("history").lastChild.remove();
}

async function open(file) {
  if (!file) return;
  const source = await new Promise((resolve, reject) => {
    const reader = Object.assign(new FileReader(), { onload: () => resolve(reader.result), onerror: reject });
    reader.readAsDataURL(file);
  });
  try {
    const record = await recordOf(source);
    show(source, file.name);
    say(`opened ${file.name}${showRecord(record)}`);
  } catch (error) {
    say(error.message);
  }
}

// -- beginning -----------------------------------------------------------------------------------

async function begin() {
  try {
    for (const { id } of (await (await ask("/v1/models")).json()).data) $("model").append(new Option(id));
    for (const { name, aliases } of await (await ask("/sdapi/v1/samplers")).json()) {
      $("scheduler").append(new Option(name, aliases[0]));
      if (aliases.length > 1) $("scheduler").append(new Option(aliases[1], aliases[2]));
    }
    await plan();
    say("ready");
  } catch (error) {
    say(error.message);
  }
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); draw(); });
$("cancel").addEventListener("click", () => drawing?.abort());
$("file").addEventListener("change", () => open($("file").files[0]));
for (const id of ["model", "size", "steps", "memory"]) $(id).addEventListener("input", planSoon);
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("now").classList.toggle("over", name === "dragover");
    if (name === "drop") open(event.dataTransfer.files[0]);
  });
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") drawing?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
begin();
