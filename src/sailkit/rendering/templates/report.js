"use strict";
(() => {
  const PAGE = 50;
  const data = JSON.parse(document.getElementById("data").textContent);
  const { labels, ids, texts, truths, sets } = data;
  const outcomes = [...labels, "unreadable", "refused"];
  const byId = (id) => document.getElementById(id);

  // Everything that comes from the data goes in as text, never as markup.
  function make(tag, className, ...children) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.append(...children);
    return element;
  }

  const answered = (set, i) => set.answers[i] < labels.length;
  const tests = {
    all: () => true,
    wrong: (chosen, i) => chosen.some((set) => answered(set, i) && set.right[i] === false),
    silent: (chosen, i) => chosen.some((set) => !answered(set, i)),
    differ: (_, i) => sets.some((set) => set.answers[i] !== sets[0].answers[i]),
  };
  const titles = { all: "All", wrong: "Wrong", silent: "Unreadable or refused", differ: "Answers differ" };
  const kinds = Object.keys(tests).filter((kind) => kind !== "differ" || sets.length > 1);
  const state = { kind: "all", set: -1, label: -1, search: "", page: 0, matching: [], open: new Set() };

  // What the search looks at, folded once.
  const folded = ids.map((id, i) =>
    [id, texts[i], ...sets.flatMap((set) => set.outputs[i].map((output) => output ?? ""))].join("\n").toLowerCase());

  function prompt(set, step, i) {
    const part = set.prompts[step];
    if (!part) return "";
    const middle = part.middles[i];
    return middle === 0 ? prompt(sets[0], step, i) : part.head + middle + part.tail;
  }

  function verdict(set, i) {
    if (!answered(set, i)) return ["silent", ""];
    if (set.right[i] === null) return ["open", "no label to compare with"];
    return set.right[i] ? ["right", "right"] : ["wrong", "wrong"];
  }

  function answer(set, i) {
    const [className, word] = verdict(set, i);
    const span = make("span", `outcome ${className}`, make("bdi", "", outcomes[set.answers[i]]));
    if (word) span.append(" ", make("small", "", word));
    return span;
  }

  function block(title, text, ifEmpty) {
    const part = make("div", "block", make("h5", "", title));
    if (text === null || text === "") {
      part.append(make("p", "none", text === null || ifEmpty ? ifEmpty : "empty"));
      return part;
    }
    const pre = make("pre", "", text);
    pre.tabIndex = 0;
    pre.dir = "auto";
    part.append(pre);
    return part;
  }

  function facts(set, i) {
    const list = make("dl", "details");
    const add = (name, value) => list.append(make("div", "", make("dt", "", name), make("dd", "", String(value))));
    if (set.gold && set.reference) {
      add("Human label", set.gold[i] ?? "none");
      add("Reference label", set.reference[i] ?? "none");
    }
    if (set.recorded) add("Recorded as", set.recorded[i] ?? "nothing");
    if (set.why[i]) add(`Why ${outcomes[set.answers[i]]}`, `the reply ${set.why[i]}`);
    add("Decided by", set.scored[i] ? "scores of the labels" : "reading the output");
    if (set.tokens && set.tokens[i]) {
      const [prompted, generated, cut] = set.tokens[i];
      add("Prompt tokens", prompted);
      if (generated) add("Generated tokens", generated);
      if (cut) add("Tokens of results cut", cut);
    }
    if (set.fingerprints && set.fingerprints[i]) add("Prompt fingerprint", set.fingerprints[i]);
    return list;
  }

  function scores(set, i) {
    if (!set.scores || !set.scores[i]) return [];
    const body = make("tbody");
    labels.forEach((label, k) => {
      const words = set.words.map(([word, label], w) => [word, label, set.logprobs && set.logprobs[i] ? set.logprobs[i][w] : null])
        .filter(([, label, value]) => label === k && value !== null);
      const shown = words.map(([word, , value]) => `${word} ${value.toFixed(4).replace("-", "−")}`).join(", ");
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      const filled = bar.appendChild(document.createElementNS(bar.namespaceURI, "rect"));
      filled.setAttribute("width", `${100 * set.scores[i][k]}%`);
      filled.setAttribute("height", "100%");
      body.append(make("tr", "",
        Object.assign(make("th", "", label), { scope: "row" }),
        make("td", "bar", bar), make("td", "number", set.scores[i][k].toFixed(4)), make("td", "words", shown)));
    });
    const head = make("tr", "", ...["Label", "", "Probability", "Log-probability"].map((name) =>
      name ? Object.assign(make("th", "", name), { scope: "col" }) : make("td")));
    return [make("table", "scores", make("thead", "", head), body)];
  }

  function panel(set, i, shared) {
    const part = make("section", "panel", make("h4", "", make("bdi", "", set.name), " ", answer(set, i)));
    const steps = set.outputs[i];
    part.append(facts(set, i), ...scores(set, i));
    steps.forEach((output, step) => {
      const last = step === steps.length - 1;
      const of = steps.length > 1 ? `, step ${step + 1} of ${steps.length}` : "";
      if (!shared) part.append(block(`Prompt${of}`, prompt(set, step, i), "not recorded"));
      const none = last && set.scored[i] ? "nothing was generated: the labels were scored" : "not recorded";
      part.append(block(`Raw output${of}`, output, output === null ? none : ""));
    });
    return part;
  }

  function expanded(i) {
    // With one step, a prompt that all sets share is shown once.
    const shared = sets.length > 1 && sets.every((set, k) =>
      set.prompts.length === 1 && (k === 0 || set.prompts[0].middles[i] === 0)) && prompt(sets[0], 0, i) !== "";
    const cell = make("td", "", make("div", "panels", ...sets.map((set) => panel(set, i, shared))));
    if (shared) cell.append(block("Prompt, the same for all", prompt(sets[0], 0, i), ""));
    cell.colSpan = 2 + sets.length;
    const row = make("tr", "expanded", cell);
    row.id = `more-${i}`;
    return row;
  }

  function row(i) {
    const open = state.open.has(i);
    const button = make("button", "item", make("span", "text", texts[i] || "(no text recorded)"), make("span", "id", ids[i]));
    button.type = "button";
    button.dir = "auto";
    button.setAttribute("aria-expanded", String(open));
    button.setAttribute("aria-controls", `more-${i}`);
    const cells = sets.map((set) => {
      const cell = make("td", "answer", answer(set, i));
      cell.dataset.set = set.name;
      return cell;
    });
    const truth = make("td", "truth", make("bdi", "", truths[i].map((k) => labels[k]).join(" / ") || "–"));
    truth.dataset.set = "label";
    const line = make("tr", open ? "open" : "", Object.assign(make("th", "", button), { scope: "row" }), truth, ...cells);
    line.addEventListener("click", (event) => {
      if (!button.contains(event.target) && String(getSelection())) return; // somebody is copying text
      const show = !state.open.has(i);
      if (show) {
        state.open.add(i);
        line.after(expanded(i));
      } else {
        state.open.delete(i);
        byId(`more-${i}`).remove();
      }
      line.classList.toggle("open", show);
      button.setAttribute("aria-expanded", String(show));
    });
    return open ? [line, expanded(i)] : [line];
  }

  function show() {
    const count = state.matching.length;
    const from = state.page * PAGE;
    const page = state.matching.slice(from, from + PAGE);
    byId("rows").replaceChildren(...page.flatMap(row));
    byId("shown").textContent = count
      ? `${(from + 1).toLocaleString("en")}–${(from + page.length).toLocaleString("en")} of ${count.toLocaleString("en")} item${count === 1 ? "" : "s"}`
      : "no item fits";
    byId("previous").disabled = from === 0;
    byId("next").disabled = from + PAGE >= count;
  }

  function filter() {
    const chosen = state.set < 0 ? sets : [sets[state.set]];
    const counts = Object.fromEntries(kinds.map((kind) => [kind, 0]));
    state.matching = [];
    for (let i = 0; i < ids.length; i++) {
      if (state.label >= 0 && !truths[i].includes(state.label)) continue;
      if (state.search && !folded[i].includes(state.search)) continue;
      for (const kind of kinds) if (tests[kind](chosen, i)) counts[kind]++;
      if (tests[state.kind](chosen, i)) state.matching.push(i);
    }
    for (const kind of kinds) byId(`count-${kind}`).textContent = counts[kind].toLocaleString("en");
    state.page = 0;
    show();
  }

  function turn(by) {
    state.page += by;
    show();
    byId("items").scrollIntoView();
  }

  function choices(select, names) {
    names.forEach((name, k) => select.append(new Option(name, k - 1)));
    select.addEventListener("change", () => { state[select.id] = Number(select.value); filter(); });
  }

  for (const kind of kinds) {
    const input = Object.assign(make("input"), { type: "radio", name: "kind", value: kind, checked: kind === "all" });
    input.addEventListener("change", () => { state.kind = kind; filter(); });
    const count = make("b");
    count.id = `count-${kind}`;
    byId("kinds").append(make("label", "", input, make("span", "", titles[kind], " ", count)));
  }
  choices(byId("set"), ["any set", ...sets.map((set) => set.name)]);
  choices(byId("label"), ["any", ...labels]);
  byId("pick-set").hidden = sets.length < 2;
  byId("table").classList.toggle("many", sets.length > 3);
  let waiting = 0;
  byId("search").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { state.search = event.target.value.toLowerCase(); filter(); }, 120);
  });
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  byId("columns").append(...["Item", "Label", ...sets.map((set) => set.name)].map((name) =>
    Object.assign(make("th", "", make("bdi", "", name)), { scope: "col" })));
  for (const element of document.querySelectorAll("#items [hidden]:not(#pick-set)")) element.hidden = false;
  filter();
})();
