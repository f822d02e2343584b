"use strict";
// Data is read from the scripts of this file and shown by textContent alone: completions are
// whatever a model has written.
(() => {
  const SLICE = 2000; // tokens drawn at once
  const TEXT_SLICE = 20000; // characters drawn at once
  const BLOCKS_KEPT = 6;
  const OVERSCAN = 6; // rows drawn beyond what is seen
  const MARKS = new Map(Object.entries({ correct: "✓", wrong: "✗", no_answer: "?", truncated: "~", timeout: "t", error: "!" }));

  const $ = (id) => document.getElementById(id);
  const words = (name) => (name ?? "not known").replaceAll("_", " ");
  const count = (number) => number.toLocaleString("en-US");

  /** A new element: attributes by name, `text` for its text, then its children. */
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "text") element.textContent = value;
      else if (value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  /** A float32 in as few digits as tell it apart, or in three where it was rounded. */
  function numberText(value, exact = true) {
    if (value === null || value === undefined || Number.isNaN(value)) return "none";
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    let digits = exact ? 1 : 3;
    while (exact && digits < 9 && Math.fround(Number(value.toPrecision(digits))) !== value) digits++;
    return String(Number(value.toPrecision(digits))).replace("-", "−");
  }

  // Data: the index at once, blocks on demand

  const index = JSON.parse($("index").textContent);
  const total = index.step.length;
  const blocks = new Map();

  /** The text of a block's script, once the browser has read it to its end. */
  async function packedText(number) {
    for (;;) {
      const script = $(`block-${number}`);
      if (script && (script.nextElementSibling || document.readyState !== "loading")) {
        return script.textContent;
      }
      if (!script && document.readyState !== "loading") throw new Error("the file is cut short");
      await new Promise((resume) => setTimeout(resume, 30));
    }
  }

  async function unpack(number) {
    const text = atob(await packedText(number));
    const packed = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    const start = 4 + new DataView(bytes.buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, start)));
    return { header, bytes, start };
  }

  function blockOf(number) {
    const block = blocks.get(number) ?? unpack(number);
    blocks.delete(number); // the oldest goes first
    blocks.set(number, block);
    block.catch(() => { if (blocks.get(number) === block) blocks.delete(number); });
    if (blocks.size > BLOCKS_KEPT) blocks.delete(blocks.keys().next().value);
    return block;
  }

  /** Part of a column of four bytes a value, of which the lowest bytes of all stand first. */
  function gathered(bytes, at, rows, from, length) {
    const out = new Uint8Array(4 * length);
    for (let byte = 0; byte < 4; byte++) {
      const plane = at + byte * rows + from;
      for (let i = 0; i < length; i++) out[4 * i + byte] = bytes[plane + i];
    }
    return out.buffer;
  }

  /** A completion with the places of its tokens in the index, and their values by quantity. */
  async function completionOf(row) {
    let number = index.first.length - 1;
    while (index.first[number] > row) number--;
    const { header, bytes, start } = await blockOf(number);
    const [first, end] = [index.first[number], index.first[number + 1] ?? total];
    const sum = (from, to) => index.length.slice(from, to).reduce((all, each) => all + each, 0);
    const [rows, from, length] = [sum(first, end), sum(first, row), index.length[row]];
    const column = (place) => gathered(bytes, start + 4 * rows * place, rows, from, length);
    const values = {};
    header.columns.forEach((name, place) => { values[name] = new Float32Array(column(place + 1)); });
    const flags = start + 4 * rows * (header.columns.length + 1) + from;
    return {
      row, length, values,
      at: -1, // the token that was focused last
      places: new Uint32Array(column(0)),
      flipped: header.flipped ? bytes.subarray(flags, flags + length) : null,
      span: header.spans[row - first],
      text: header.completions[row - first],
      extracted: header.extracted[row - first],
      rewards: header.rewards[row - first],
      finish: header.finish[row - first],
      asked: header.groups[index.group[row]],
    };
  }

  // The list: only the rows that are seen are in the page

  const list = $("list");
  let found = [];
  let selected = -1;
  let linked = -1; // the completion that the address names
  let current = null;

  const rowHeight = () => 3.75 * parseFloat(getComputedStyle(document.documentElement).fontSize);

  function verdictMark(row) {
    const verdict = index.verdict[row];
    return make("span", { class: `mark ${verdict ?? ""}`, "aria-hidden": "true", text: MARKS.get(verdict) ?? "·" });
  }

  const stepName = (step) => `step-${String(step).padStart(5, "0")}`; // its folder's, to find it by
  const nameOf = (row) => `${stepName(index.step[row])}, ${index.groups[index.group[row]].id.slice(0, 6)}/${index.sample[row]}`;

  function option(position) {
    const row = found[position];
    const flips = index.flips[row] ? `, ${count(index.flips[row])} flipped` : "";
    const said = index.extracted[row] === null ? "no answer" : index.extracted[row];
    const element = make("div", {
      class: "row", role: "option", id: `row-${row}`, "aria-selected": String(row === selected),
      "aria-posinset": position + 1, "aria-setsize": found.length,
    },
    verdictMark(row),
    make("span", { class: "what" },
      make("span", { class: "verdict", text: words(index.verdict[row] ?? "not judged") }),
      make("bdi", { class: "said", text: said })),
    make("span", { class: "size", text: `${count(index.length[row])} tokens${flips}` }),
    make("span", { class: "name" },
      make("span", { text: nameOf(row) }), " ",
      make("bdi", { text: index.groups[index.group[row]].problem })));
    element.style.top = `${position * rowHeight()}px`;
    element.addEventListener("click", () => pick(row));
    return element;
  }

  function drawList() {
    const height = rowHeight();
    const first = Math.max(0, Math.floor(list.scrollTop / height) - OVERSCAN);
    const last = Math.ceil((list.scrollTop + list.clientHeight) / height) + OVERSCAN;
    $("rows").style.height = `${found.length * height}px`;
    const drawn = [];
    for (let at = first; at < Math.min(last, found.length); at++) drawn.push(option(at));
    $("rows").replaceChildren(...drawn);
    if ($(`row-${selected}`)) list.setAttribute("aria-activedescendant", `row-${selected}`);
    else list.removeAttribute("aria-activedescendant");
  }

  /** Scroll no further than needed to see a position. */
  function reveal(position) {
    const [height, top] = [rowHeight(), position * rowHeight()];
    if (top < list.scrollTop) list.scrollTop = top;
    const beyond = top + height - list.clientHeight;
    if (beyond > list.scrollTop) list.scrollTop = beyond;
  }

  function moveInList(event) {
    const page = Math.max(1, Math.floor(list.clientHeight / rowHeight()) - 1);
    const at = found.indexOf(selected);
    const to = {
      ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page,
      Home: 0, End: found.length - 1,
    }[event.key];
    if (to === undefined || !found.length) return;
    event.preventDefault();
    pick(found[Math.min(Math.max(to, 0), found.length - 1)]);
  }

  // Filters

  const CHOICES = ["step", "verdict", "kind"];

  function fill(id, values, every, named = words) {
    const counts = new Map();
    for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
    const options = [...counts].map(([value, times]) =>
      make("option", { value: value ?? "", text: `${named(value)} (${count(times)})` }));
    $(id).replaceChildren(make("option", { value: "*", text: every }), ...options);
    $(id).parentElement.hidden = counts.size < 2;
  }

  function filter() {
    const [step, verdict, kind] = CHOICES.map((name) => $(`filter-${name}`).value);
    const text = $("filter-text").value.trim().toLowerCase();
    const fits = (wanted, value) => wanted === "*" || wanted === String(value ?? "");
    const holds = (row) => {
      const group = index.groups[index.group[row]];
      return `${group.problem}\n${group.id}/${index.sample[row]}\n${index.extracted[row] ?? ""}`.toLowerCase().includes(text);
    };
    found = [];
    for (let row = 0; row < total; row++) {
      if (fits(step, index.step[row]) && fits(verdict, index.verdict[row]) && fits(kind, index.kind[row])
          && (!$("filter-flips").checked || index.flips[row]) && (!text || holds(row))) found.push(row);
    }
    $("count").textContent = `${count(found.length)} of ${count(total)} completions`;
    if (found.length && !found.includes(selected)) { linked = -1; select(found[0]); }
    else { reveal(Math.max(0, found.indexOf(selected))); drawList(); }
    if (!found.length) { selected = linked = -1; showNote("No completion fits the filters."); }
  }

  function clearFilters() {
    for (const name of CHOICES) $(`filter-${name}`).value = "*";
    $("filter-text").value = "";
    $("filter-flips").checked = false;
  }

  /** Show a completion that the filters hide: they are cleared. */
  function uncover(row) {
    if (found.includes(row)) return;
    clearFilters();
    selected = row;
    filter();
  }

  // The completion

  let quantity = index.quantities[0]?.name ?? null;
  const scales = Object.fromEntries(index.quantities.map((each) => [each.name, each.scale]));
  const described = (name) => index.quantities.find((each) => each.name === name);

  /** A note in place of a completion. */
  function showNote(text) {
    hideTip();
    current = null;
    $("detail").replaceChildren(make("p", { class: "note", role: "status", text }));
  }

  async function select(row) {
    selected = row;
    reveal(found.indexOf(row));
    drawList();
    try {
      const completion = await completionOf(row);
      if (selected === row) showCompletion(completion);
    } catch (error) {
      if (selected === row) showNote(`This completion cannot be shown: ${error.message}.`);
    }
  }

  /** Select a completion, and name it in the address. */
  function pick(row) {
    linked = row;
    select(row);
    link();
  }

  // The address: what was chosen, so that whoever opens it sees the same

  const NAMES = ["completion", ...CHOICES, "text", "flips", "color", "full"];
  const initial = { quantity, scales: { ...scales } };

  function link() {
    const said = new URLSearchParams();
    if (linked >= 0) said.set("completion", linked);
    for (const name of CHOICES) {
      if ($(`filter-${name}`).value !== "*") said.set(name, $(`filter-${name}`).value);
    }
    if ($("filter-text").value.trim()) said.set("text", $("filter-text").value.trim());
    if ($("filter-flips").checked) said.set("flips", "1");
    if (quantity !== initial.quantity) said.set("color", quantity);
    if (scales[quantity] !== initial.scales[quantity]) said.set("full", scales[quantity]);
    const whole = `${location.href.split("#")[0]}${String(said) && `#${said}`}`;
    try { history.replaceState(null, "", whole); } catch { /* a file may not */ }
  }

  /** Show what the address names; filters that hide its completion are cleared. */
  function follow() {
    const said = new URLSearchParams(location.hash.slice(1));
    if (!NAMES.some((name) => said.has(name))) return; // a section, or nothing
    for (const name of CHOICES) {
      const field = $(`filter-${name}`);
      field.value = said.get(name) ?? "*";
      if (field.selectedIndex < 0) field.value = "*";
    }
    $("filter-text").value = said.get("text") ?? "";
    $("filter-flips").checked = said.get("flips") === "1";
    quantity = described(said.get("color"))?.name ?? initial.quantity;
    Object.assign(scales, initial.scales);
    const full = Number(said.get("full"));
    if (full > 0 && Number.isFinite(full)) scales[quantity] = full;
    const row = /^\d+$/.test(said.get("completion")) ? Number(said.get("completion")) : NaN;
    linked = -1;
    if (row < total) selected = row;
    filter();
    if (row < total) { uncover(row); linked = row; }
    if (found.length) select(selected); // in the colour named
  }

  function fact(name, value) {
    return make("div", {}, make("dt", { text: name }), make("dd", {}, make("bdi", { text: value })));
  }

  function folded(title, text) {
    return text === null || text === undefined ? null
      : make("details", {}, make("summary", { text: title }), make("pre", { dir: "auto", text }));
  }

  function siblings(row) {
    const links = [];
    for (let other = 0; other < total; other++) {
      if (index.group[other] !== index.group[row]) continue;
      const verdict = words(index.verdict[other] ?? "not judged");
      const button = make("button", {
        type: "button", class: "sibling", "aria-current": other === row ? "true" : null,
        "aria-label": `sample ${index.sample[other]}, ${verdict}`, title: verdict,
      }, verdictMark(other), String(index.sample[other]));
      button.addEventListener("click", () => {
        uncover(other);
        pick(other);
      });
      links.push(button);
    }
    return make("div", { class: "siblings", role: "group", "aria-label": "Samples of this group" }, ...links);
  }

  function showCompletion(completion) {
    hideTip();
    current = completion;
    const { row, asked } = completion;
    const fromSibling = document.activeElement?.closest(".siblings");
    const flips = completion.flipped ? `, ${count(index.flips[row])} flipped` : "";
    const ended = completion.finish === null ? "" : `, ended by ${completion.finish}`;
    const tokens = make("div", {
      id: "tokens", class: "tokens", role: "group",
      "aria-label": "Tokens. Arrow keys move from one to the next.",
    });
    $("detail").replaceChildren(
      make("h3", { text: nameOf(row) }),
      siblings(row),
      make("dl", { class: "facts" },
        fact("Verdict", words(index.verdict[row] ?? "not judged")),
        fact("Reward", numberText(index.reward[row], false)),
        ...Object.entries(completion.rewards).map(([name, value]) =>
          fact(`Reward ${name.replaceAll("_", " ")}`, numberText(value, false))),
        fact("Extracted", completion.extracted ?? "nothing"),
        fact("Reference", asked.answer ?? "not known"),
        fact("Group", words(index.kind[row])),
        fact("Base advantage", numberText(index.base[row], false)),
        fact("Tokens", `${count(completion.length)}${flips}${ended}`)),
      make("pre", { class: "problem", dir: "auto", text: asked.problem }),
      ...[folded("Prompt", asked.prompt), folded("Teacher’s prompt", asked.teacher),
        folded("Reference solution", asked.solution)].filter(Boolean),
      toolbar(completion),
      ...(completion.text == null ? [] : [textInSlices(completion.text)]),
      tokens,
      make("p", { id: "more" }));
    drawTokens(0);
    drawLegend();
    if (fromSibling) $("detail").querySelector(".sibling[aria-current]").focus();
  }

  function toolbar(completion) {
    const choice = make("select", { id: "quantity" },
      ...index.quantities.filter((each) => completion.values[each.name]).map((each) =>
        make("option", { value: each.name, text: each.label })));
    if (completion.values[quantity]) choice.value = quantity;
    choice.addEventListener("change", () => { quantity = choice.value; drawLegend(); recolour(); link(); });
    const next = make("button", { type: "button", text: "Next flipped token" });
    next.addEventListener("click", nextFlipped);
    return make("div", { class: "toolbar" },
      choice.length ? make("label", { text: "Colour by " }, choice) : null,
      make("div", { id: "legend", class: "legend" }),
      completion.flipped && index.flips[completion.row] ? next : null);
  }

  const colouredBy = () => (current.values[quantity] ? quantity : $("quantity")?.value || null);

  /** Colour by a share of full colour, -1 to 1; no value has a look of its own. */
  function paint(element, share) {
    element.classList.toggle("above", share > 0);
    element.classList.toggle("below", share < 0);
    element.classList.toggle("absent", Number.isNaN(share));
    element.style.setProperty("--strength", Math.min(1, Math.abs(share || 0)));
  }

  function drawLegend() {
    const shown = described(colouredBy());
    if (!shown) return;
    const scale = make("input", { type: "number", min: "0", step: "any", value: scales[shown.name] });
    scale.addEventListener("change", () => {
      scales[shown.name] = Number(scale.value) > 0 ? Number(scale.value) : shown.scale;
      scale.value = scales[shown.name];
      nameEnds();
      recolour();
      link();
    });
    const bar = make("span", { class: "bar", "aria-hidden": "true" });
    for (let part = shown.signed ? -5 : 0; part <= 5; part++) {
      paint(bar.appendChild(make("i")), part / 5);
    }
    const [low, high] = [make("span"), make("span")];
    const nameEnds = () => {
      const end = (sign) => numberText(shown.centre + sign * scales[shown.name], false);
      low.textContent = shown.signed ? end(-1) : "0";
      high.textContent = end(1);
    };
    nameEnds();
    const values = current.values[shown.name];
    const keys = [["flipped", current.flipped], ["answer first last", current.span], ["absent", values.some(Number.isNaN)]];
    const names = { flipped: "flipped", absent: "no value" };
    $("legend").replaceChildren(
      low, bar, high,
      make("label", { text: shown.signed ? "full colour at ± " : "full colour at " }, scale),
      ...keys.filter(([, there]) => there).map(([look]) =>
        make("span", { class: `key ${look}`, text: names[look] ?? "extracted" })));
  }

  function share(at) {
    const shown = described(colouredBy());
    return shown ? (current.values[shown.name][at] - shown.centre) / scales[shown.name] : 0;
  }

  function recolour() {
    for (const token of $("tokens").children) paint(token, share(Number(token.dataset.at)));
  }

  const tokenText = (at) => (index.texts ? index.texts[current.places[at]] : String(index.ids[current.places[at]]));

  function token(at) {
    const text = tokenText(at).replaceAll("\n", "↵\n");
    const element = make("bdi", { class: "token", tabindex: at ? "-1" : "0", "data-at": at, text: index.texts ? text : `${text} ` });
    if (current.flipped?.[at]) element.classList.add("flipped");
    const [start, end] = current.span ?? [0, 0];
    if (at >= start && at < end) {
      element.classList.add("answer");
      element.classList.toggle("first", at === start);
      element.classList.toggle("last", at === end - 1);
    }
    paint(element, share(at));
    return element;
  }

  /** The next slice from a token on, and a button for what is left. */
  function drawTokens(from) {
    const drawn = [];
    const end = Math.min(from + SLICE, current.length);
    for (let at = from; at < end; at++) drawn.push(token(at));
    $("tokens").append(...drawn);
    moreButton($("more"), end, current.length, SLICE, "tokens", drawTokens);
  }

  function moreButton(place, end, whole, slice, unit, draw) {
    if (end >= whole) { place.replaceChildren(); return; }
    const button = make("button", {
      type: "button", text: `Show ${count(Math.min(slice, whole - end))} more of ${count(whole - end)} ${unit}`,
    });
    button.addEventListener("click", () => {
      draw(end);
      place.tabIndex = -1; // the keyboard goes on from here when nothing is left
      (place.firstElementChild ?? place).focus();
    });
    place.replaceChildren(button);
  }

  function textInSlices(text) {
    const [shown, more] = [make("pre", { dir: "auto", class: "plain" }), make("p")];
    const draw = (from) => {
      const end = from + TEXT_SLICE;
      shown.append(text.slice(from, end));
      moreButton(more, end, text.length, TEXT_SLICE, "characters", draw);
    };
    draw(0);
    return make("div", {}, shown, more);
  }

  // Tokens: what a pointer or the keyboard is on tells its values

  const tokenAt = (at) => $("tokens")?.children[at] ?? null;
  const tokenUnder = (event) => event.target.closest?.(".token");

  function tipRows(at) {
    const id = index.ids[current.places[at]];
    const rows = [["token", index.texts ? tokenText(at).replaceAll("\n", "↵") : "no text"],
      ["number, id", `${count(at)}, ${id}`]];
    for (const each of index.quantities) {
      const values = current.values[each.name];
      if (values) rows.push([each.label, numberText(values[at], index.exact)]);
    }
    if (current.flipped) rows.push(["flipped", current.flipped[at] ? "yes" : "no"]);
    const [start, end] = current.span ?? [0, 0];
    if (at >= start && at < end) rows.push(["answer", "belongs to the extracted answer"]);
    return rows.map(([name, value]) => fact(name, value));
  }

  function showTip(element) {
    hideTip();
    $("tip").replaceChildren(make("dl", {}, ...tipRows(Number(element.dataset.at))));
    $("tip").hidden = false;
    element.setAttribute("aria-describedby", "tip");
    placeTip();
  }

  /** Above the token that it tells of, or below where there is no room. */
  function placeTip() {
    const element = $("tokens")?.querySelector("[aria-describedby]");
    if (!element) return;
    const [box, size] = [element.getClientRects()[0], $("tip").getBoundingClientRect()];
    const above = box.top - size.height - 6;
    $("tip").style.left = `${Math.max(8, Math.min(box.left, innerWidth - size.width - 8))}px`;
    $("tip").style.top = `${above > 4 ? above : box.bottom + 6}px`;
  }

  function hideTip() {
    $("tip").hidden = true;
    $("tokens")?.querySelector("[aria-describedby]")?.removeAttribute("aria-describedby");
  }

  let dismissed = null; // the token whose values were put away by Escape

  /** The pointer is on no token: the values of the focused one stay. */
  function leave() {
    const focused = document.activeElement.closest(".token");
    if (focused && focused !== dismissed) showTip(focused);
    else hideTip();
  }

  function focusToken(at) {
    const element = tokenAt(at);
    if (!element) return;
    for (const each of $("tokens").querySelectorAll('[tabindex="0"]')) each.tabIndex = -1;
    element.tabIndex = 0;
    element.focus();
  }

  function moveInTokens(event) {
    const element = tokenUnder(event);
    if (event.key === "Escape") { dismissed = document.activeElement; hideTip(); }
    if (!element) return;
    const at = Number(element.dataset.at);
    const last = $("tokens").children.length - 1;
    const to = {
      ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + 10, ArrowUp: at - 10, Home: 0, End: last,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    focusToken(Math.min(Math.max(to, 0), last));
  }

  function nextFlipped() {
    let at = current.flipped.indexOf(1, current.at + 1);
    if (at < 0) at = current.flipped.indexOf(1);
    if (at < 0) return;
    while (!tokenAt(at)) drawTokens($("tokens").children.length);
    focusToken(at);
  }

  function start() {
    fill("filter-step", index.step, "every step", stepName);
    fill("filter-verdict", index.verdict, "every verdict");
    fill("filter-kind", index.kind, "every kind");
    $("filter-flips").parentElement.hidden = !index.flips.some((flips) => flips);
    $("filters").addEventListener("input", () => { filter(); link(); });
    $("filters").addEventListener("submit", (event) => event.preventDefault());
    $("filters").addEventListener("reset", () => setTimeout(() => { filter(); link(); }));
    list.addEventListener("keydown", moveInList);
    list.addEventListener("scroll", () => requestAnimationFrame(drawList));
    new ResizeObserver(drawList).observe(list);
    const detail = $("detail");
    detail.addEventListener("pointerover", (event) => { const on = tokenUnder(event); on ? showTip(on) : leave(); });
    detail.addEventListener("pointerleave", leave);
    detail.addEventListener("focusin", (event) => { const on = tokenUnder(event); dismissed = null; if (on) { current.at = Number(on.dataset.at); showTip(on); } });
    detail.addEventListener("focusout", hideTip);
    addEventListener("scroll", placeTip, { passive: true, capture: true });
    addEventListener("keydown", moveInTokens);
    addEventListener("hashchange", follow);
    filter();
    follow();
  }

  start();
})();
