"use strict";
// Trajectory content is inserted through textContent only, so it is never parsed as HTML.
(() => {
  const contents = JSON.parse(document.getElementById("contents").textContent);
  const [BENCHMARK, INDEX, VERDICT, END, TOOLS, TURNS, QUESTION, PREDICTION, FLIP] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
  const MARKS = { right: "✓", wrong: "✗", failed: "!", unscored: "·" };
  const WORDS = { right: "correct", wrong: "wrong", failed: "infrastructure error", unscored: "not scored" };
  const STEP = 80;
  const byId = (id) => document.getElementById(id);
  const list = byId("list"), detail = byId("detail");
  const names = ["benchmark", "verdict", "tool", "end", "flip", "words"].filter((name) => byId(name));

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined && text !== null) made.textContent = text;
    return made;
  };
  const spaced = (name) => name.replaceAll("_", " ");

  // Data files call this; each is loaded once, when one of its samples is opened.
  const files = new Map();
  const arrivals = new Map();
  globalThis.deepeyes = (number, packed) => arrivals.get(number)?.(packed);
  const load = (number) => {
    if (!files.has(number)) {
      files.set(number, new Promise((resolve, reject) => {
        arrivals.set(number, resolve);
        const script = document.createElement("script");
        script.src = `data/${number}.js`;
        script.onerror = () => reject(new Error(`data/${number}.js is missing: keep the folders data and images beside this page`));
        document.head.append(script);
      }).then(async (packed) => {
        const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
        const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
        return JSON.parse(await new Response(stream).text());
      }));
      files.get(number).catch(() => files.delete(number));
    }
    return files.get(number);
  };

  // The list
  let found = [], shown = 0, open = null;
  const end = element("div");
  const watcher = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) more();
  }, { root: list, rootMargin: "600px" });

  const row = (number) => {
    const sample = contents.rows[number];
    const made = element("button", "row");
    made.type = "button";
    made.tabIndex = -1;
    made.setAttribute("role", "option");
    made.setAttribute("aria-selected", String(number === open));
    made.dataset.number = number;
    const mark = element("span", `mark ${sample[VERDICT]}`, MARKS[sample[VERDICT]]);
    mark.title = WORDS[sample[VERDICT]];
    const facts = [contents.benchmarks[sample[BENCHMARK]], sample[INDEX]];
    if (sample[TURNS]) facts.push(`${sample[TURNS]} turn${sample[TURNS] === 1 ? "" : "s"}`);
    if (sample[END] && sample[END] !== "answer") facts.push(spaced(sample[END]));
    made.append(mark, element("span", "asked", sample[QUESTION] || sample[PREDICTION] || "(no text)"), element("span", "facts", facts.join(" · ")));
    return made;
  };
  const more = () => {
    const next = found.slice(shown, shown + STEP);
    shown += next.length;
    end.before(...next.map(row));
    if (shown >= found.length) watcher.unobserve(end);
  };
  const chosen = () => Object.fromEntries(names.map((name) => [name, byId(name).value]));
  const filter = () => {
    const wanted = chosen();
    const words = wanted.words.toLowerCase().split(/\s+/).filter(Boolean);
    found = [];
    contents.rows.forEach((sample, number) => {
      if (wanted.benchmark && String(sample[BENCHMARK]) !== wanted.benchmark) return;
      if (wanted.verdict && sample[VERDICT] !== wanted.verdict) return;
      if (wanted.tool && !(wanted.tool === "-" ? !sample[TOOLS].length : sample[TOOLS].includes(wanted.tool))) return;
      if (wanted.end && sample[END] !== wanted.end) return;
      if (wanted.flip && sample[FLIP] !== wanted.flip) return;
      if (words.length) {
        const text = `${sample[QUESTION]} ${sample[PREDICTION]} ${sample[INDEX]}`.toLowerCase();
        if (!words.every((word) => text.includes(word))) return;
      }
      found.push(number);
    });
    shown = 0;
    list.replaceChildren(end);
    list.scrollTop = 0;
    more();
    watcher.unobserve(end);
    if (shown < found.length) watcher.observe(end);
    byId("count").textContent = `${found.length.toLocaleString("en")} of ${contents.rows.length.toLocaleString("en")}`;
    if (!found.length) list.prepend(element("p", "quiet", "No sample matches the filters."));
  };

  // One sample
  const pictures = (images) => {
    const box = element("div", "pictures");
    for (const name of images) {
      if (!name) {
        box.append(element("span", "lost", "image not available"));
        continue;
      }
      const link = element("a");
      link.href = `images/${encodeURIComponent(name)}`;
      link.target = "_blank";
      link.rel = "noopener noreferrer";
      const image = element("img");
      image.loading = "lazy";
      image.decoding = "async";
      image.alt = "image of the trajectory";
      image.src = link.href;
      link.append(image);
      box.append(link);
    }
    return box;
  };
  const parts = (given) => {
    const made = [];
    let images = [];
    const flush = () => {
      if (images.length) made.push(pictures(images));
      images = [];
    };
    for (const part of given) {
      if ("image" in part) {
        images.push(part.image);
        continue;
      }
      flush();
      if (part.name) made.push(element("div", part.name === "stderr" ? "label error" : "label", part.name));
      if (part.text.trim()) made.push(element("pre", "", part.text));
    }
    flush();
    return made;
  };
  const folded = (title, ...children) => {
    const made = element("details");
    made.append(element("summary", "", title), ...children);
    return made;
  };
  const KINDS = {
    think: (text) => element("p", "think", text.trim()),
    text: (text) => element("p", "plain", text),
    code: (text) => element("pre", "code", text),
    tool_call: (text) => element("pre", "code", text.trim()),
    answer: (text) => element("div", "answer", text.trim()),
  };
  const turn = (given, number) => {
    const made = element("div", "turn");
    const facts = [`Turn ${number + 1}`];
    if (given.tool) facts.push(given.tool);
    facts.push(`${given.tokens.toLocaleString("en")} tokens`, `${given.seconds[0]} s`);
    if (given.tool) facts.push(`tool ${given.seconds[1]} s`);
    if (given.cut) facts.push("cut at the length limit");
    made.append(element("div", "head", facts.join(" · ")));
    for (const [kind, text] of given.parts) made.append(KINDS[kind](text));
    if (given.error) made.append(element("div", "label error", `${given.infrastructure ? "infrastructure error" : "failed"}: ${given.error}`));
    if (given.observation.length) made.append(element("div", "label", "what came back"), ...parts(given.observation));
    return made;
  };
  const asked = (sample) => {
    const made = [];
    if (!sample.prompt?.length) {
      made.push(element("p", "question", sample.question));
      const options = Object.entries(sample.options).map(([letter, text]) => `${letter}. ${text}`).join("\n");
      if (options) made.push(element("p", "question", options));
      return made;
    }
    for (const message of sample.prompt) {
      if (message.role === "system") {
        made.push(folded("System prompt", ...parts(message.parts)));
        continue;
      }
      for (const part of message.parts) {
        if ("text" in part && part.text.trim()) made.push(element("p", "question", part.text.trim()));
      }
      const images = message.parts.filter((part) => "image" in part).map((part) => part.image);
      if (images.length) made.push(pictures(images));
    }
    return made;
  };
  const outcome = (sample, verdict) => {
    const made = element("dl", "outcome");
    const line = (name, text, className) => made.append(element("dt", "", name), element("dd", className ?? "", text));
    const options = sample.options ?? {};
    const reference = options[sample.reference] ? `${sample.reference}. ${options[sample.reference]}` : sample.reference;
    line("Verdict", WORDS[verdict] + (sample.score !== null && sample.score % 1 ? `, ${sample.score}` : ""), `verdict ${verdict}`);
    if (reference) line("Reference answer", reference);
    line("Scored", sample.prediction || "(nothing)");
    if (sample.note) line("Scorer", sample.note);
    if (sample.error) line("Failure", sample.error);
    return made;
  };
  const show = async (number) => {
    open = number;
    for (const other of list.querySelectorAll('[aria-selected="true"]')) other.setAttribute("aria-selected", "false");
    const chosenRow = list.querySelector(`[data-number="${number}"]`);
    chosenRow?.setAttribute("aria-selected", "true");
    chosenRow?.scrollIntoView({ block: "nearest" });
    remember();
    const place = contents.rows[number];
    let sample;
    try {
      sample = (await load(Math.floor(number / contents.samples_per_file)))[number % contents.samples_per_file];
    } catch (error) {
      if (open === number) detail.replaceChildren(element("p", "quiet", error.message));
      return;
    }
    if (open !== number) return;
    const facts = [];
    if (sample.category) facts.push(sample.category);
    if (sample.turns) {
      const tokens = sample.turns.reduce((sum, one) => sum + one.tokens, 0);
      facts.push(`ended: ${spaced(sample.end)}`, `${sample.turns.length} turns`, `${tokens.toLocaleString("en")} tokens`, `${sample.seconds} s`);
    }
    detail.replaceChildren(
      element("h3", "", `${contents.benchmarks[place[BENCHMARK]]} · ${place[INDEX]}`),
      element("p", "facts-line", facts.join(" · ")),
      ...asked(sample),
      ...(sample.turns ?? []).map(turn),
      ...(sample.turns ? [] : [element("p", "quiet", "No trajectory of this sample was found.")]),
      outcome(sample, place[VERDICT]),
    );
    // On a narrow screen the sample is below the list.
    if (detail.getBoundingClientRect().top > list.getBoundingClientRect().bottom - 1) detail.scrollIntoView({ block: "start" });
  };

  // Filters and the open sample are stored in the URL, so that links restore them.
  const remember = () => {
    const state = new URLSearchParams(Object.entries(chosen()).filter(([, value]) => value));
    if (open !== null) state.set("sample", open);
    history.replaceState(null, "", `#${state}`);
  };
  const options = (id, pairs) => byId(id).append(...pairs.map(([value, text]) => new Option(text, value)));
  options("benchmark", contents.benchmarks.map((name, number) => [String(number), name]));
  options("tool", [...new Set(contents.rows.flatMap((sample) => sample[TOOLS]))].sort().map((name) => [name, name]));
  options("end", [...new Set(contents.rows.map((sample) => sample[END]))].filter(Boolean).sort().map((name) => [name, spaced(name)]));

  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("input", () => { filter(); remember(); });
  list.addEventListener("click", (event) => {
    const target = event.target.closest(".row");
    if (target) show(Number(target.dataset.number));
  });
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || !found.length) return;
    event.preventDefault();
    const at = Math.min(found.length - 1, Math.max(0, found.indexOf(open) + step));
    while (shown <= at) more();
    show(found[at]);
  });
  document.addEventListener("click", (event) => {
    const target = event.target.closest("[data-flip]");
    if (!target) return;
    for (const name of names) byId(name).value = "";
    byId("benchmark").value = target.dataset.benchmark;
    byId("flip").value = target.dataset.flip;
    filter();
    remember();
    byId("samples").scrollIntoView();
  });
  const state = new URLSearchParams(location.hash.slice(1));
  for (const name of names) if (state.has(name)) byId(name).value = state.get(name);
  filter();
  const wanted = Number(state.get("sample"));
  if (state.has("sample") && contents.rows[wanted]) show(wanted);
})();
