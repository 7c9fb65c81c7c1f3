"use strict";

// One conversation about one video. Each question is a request to the chat API with `watch`, whose stream has, beside
// the text, what draft and target do.

const at = (id) => document.getElementById(id);
const lanes = new Lanes(at("lanes"));
const frames = new Frames(at("frames"), at("kept"));

let video = null; // a part of a message
let turns = []; // messages so far
let last = null; // the last question's messages and figures, for the comparison
let running = null; // an AbortController

const headers = () => {
  const key = at("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
};

function show({ status = "", error = "" }) {
  at("status").textContent = status;
  at("error").textContent = error;
}

function settle() {
  const busy = running !== null;
  at("ask").disabled = busy;
  at("stop").disabled = !busy;
  at("plain").disabled = busy || last === null;
  at("again").disabled = busy || turns.length === 0;
}

// ---- the video ----------------------------------------------------------------------------------------------------

function choose(file) {
  if (!file || running) return;
  const reader = new FileReader();
  reader.onload = () => {
    const still = file.type.startsWith("image/");
    const url = file.type ? reader.result : reader.result.replace(/^data:[^;,]*/, "data:video/mp4");
    video = still ? { type: "image_url", image_url: { url } } : { type: "video_url", video_url: { url } };
    at("player").hidden = still;
    if (!still) at("player").src = URL.createObjectURL(file);
    restart();
    show({ status: `${file.name} is ready: ask.` });
    at("question").focus();
  };
  reader.onerror = () => show({ error: `${file.name} cannot be read.` });
  reader.readAsDataURL(file);
}

function restart() {
  turns = [];
  last = null;
  at("log").replaceChildren();
  at("figures").replaceChildren();
  at("speedup").textContent = "";
  lanes.clear();
  frames.clear();
  settle();
}

// ---- a question ---------------------------------------------------------------------------------------------------

/** Ask, and call `take` with each chunk of the stream. Throws an Error with the server's text. */
async function ask(request, take, signal) {
  const body = JSON.stringify({ stream: true, watch: true, ...request });
  const response = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body, signal });
  if (!response.ok) {
    const found = await response.json().catch(() => null);
    throw new Error(found?.error?.message || `The server answered with status ${response.status}.`);
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The connection was lost before the answer was complete.");
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      take(chunk);
    }
  }
}

function entry(question, label) {
  const item = document.createElement("li");
  const asked = document.createElement("div");
  asked.className = "asked";
  asked.textContent = label ? `${question} (${label})` : question;
  const said = document.createElement("p");
  said.className = "said";
  item.append(asked, said);
  at("log").append(item);
  return said;
}

function write(said, pieces) {
  for (const [origin, text] of pieces) {
    const end = said.lastElementChild;
    if (end && end.className === origin) {
      end.append(text);
      continue;
    }
    const piece = document.createElement("span");
    piece.className = origin;
    piece.title = { d: "drafted and accepted", c: "corrected by the target", t: "the target alone" }[origin];
    piece.append(text);
    said.append(piece);
  }
}

function list(figures) {
  at("figures").replaceChildren(
    ...figures.flatMap(([name, value]) => {
      const [term, found] = [document.createElement("dt"), document.createElement("dd")];
      term.textContent = name;
      found.textContent = value;
      return [term, found];
    }),
  );
}

/** One answer with all that is watched; one with a label is for comparison. Returns its text and figures, or null if it was stopped or failed. */
async function answer(question, request, label) {
  running = new AbortController();
  settle();
  const said = entry(question, label);
  if (!label) lanes.clear();
  let [stats, figures] = [null, []];
  show({ status: "The video is read, and the models prepare." });
  try {
    await ask(
      request,
      ({ pvlm }) => {
        if (!pvlm) return;
        if (pvlm.pieces) {
          show({ status: "The answer is being written." });
          write(said, pvlm.pieces);
        }
        stats = pvlm.stats || stats;
        if (label) return; // lanes, frames and figures stay those of the answer that is compared
        if (pvlm.lanes) lanes.add(pvlm.lanes);
        frames.take(pvlm);
        if (pvlm.figures) list((figures = pvlm.figures));
      },
      running.signal,
    );
    show({ status: "The answer is complete." });
    return { text: said.textContent, stats, figures };
  } catch (error) {
    if (error.name === "AbortError") show({ status: "Stopped." });
    else show({ error: error.message });
    return null;
  } finally {
    running = null;
    settle();
  }
}

at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const question = at("question").value.trim();
  if (running || !question) return;
  const text = { type: "text", text: question };
  const first = turns.length === 0 && video;
  const messages = [...turns, { role: "user", content: first ? [video, text] : [text] }];
  at("speedup").textContent = "";
  const found = await answer(question, { messages });
  if (!found) return;
  last = { question, messages, ...found };
  turns = [...messages, { role: "assistant", content: found.text }];
  at("question").select();
  settle();
});

at("plain").addEventListener("click", async () => {
  const before = last;
  const found = await answer(before.question, { messages: before.messages, method: "ar" }, "plain decoding");
  if (!found || !found.stats || !before.stats) return;
  const ratio = found.stats.decode_s / before.stats.decode_s;
  const same = found.text === before.text ? "the same text" : "another text";
  at("speedup").textContent = `${ratio.toFixed(2)}× as fast as plain decoding, ${same}`;
  const seconds = (stats) => `${stats.decode_s.toFixed(3)} s for ${stats.new_tokens} tokens`;
  list([["decoding", seconds(before.stats)], ["plain decoding", seconds(found.stats)], ...before.figures]);
});

at("stop").addEventListener("click", () => running?.abort());
at("again").addEventListener("click", () => {
  restart();
  show({ status: "Ask about the same video, or choose another." });
});

// ---- dropping -----------------------------------------------------------------------------------------------------

at("file").addEventListener("change", () => choose(at("file").files[0]));
for (const kind of ["dragover", "drop", "dragleave"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") choose(event.dataTransfer.files[0]);
  });
}

async function introduce() {
  try {
    const found = await (await fetch("v1/models", { headers: headers() })).json();
    at("model").textContent = found.data ? `Model: ${found.data.map((model) => model.id).join(", ")}` : "";
    at("key").closest("details").open = !found.data;
  } catch {
    show({ error: "The server cannot be reached." });
  }
}

at("key").addEventListener("change", introduce);
introduce();
settle();
