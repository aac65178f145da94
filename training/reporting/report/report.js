/* The report's behaviour: draws the figures, switches training stages, filters incidents, and, where a server feeds the
   page, takes in what is new without losing the reader's place. What is chosen stands in the address after "#". */
"use strict";
(() => {
  const live = document.body.dataset.live === "1";
  const POLL_MS = 2000;
  const HAS_MOUSE = matchMedia("(pointer: fine)").matches;
  const IS_NARROW = matchMedia("(max-width: 720px)").matches;
  const CONFIG = {
    displaylogo: false,
    responsive: true,
    displayModeBar: IS_NARROW ? false : "hover",
    modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
  };
  const KEYS = ["stage", "what", "attempt", "words"];

  let figures = JSON.parse(document.getElementById("figures").textContent);
  const view = readView();
  const pristine = new Map(sections().map((section) => [section.id, section.outerHTML]));

  function sections() {
    return [...document.querySelectorAll("#content > [id]")];
  }

  /* ---- what is chosen ---- */

  function readView() {
    const words = new URLSearchParams(location.hash.slice(1));
    const chosen = { choices: {} };
    for (const key of KEYS) chosen[key] = words.get(key) ?? "";
    for (const [key, value] of words) if (key.startsWith("chart.")) chosen.choices[key.slice(6)] = value;
    return chosen;
  }

  function keepView() {
    const words = new URLSearchParams();
    for (const key of KEYS) if (view[key]) words.set(key, view[key]);
    for (const [name, label] of Object.entries(view.choices)) words.set("chart." + name, label);
    history.replaceState(null, "", words.size ? "#" + words : location.pathname + location.search);
  }

  /* ---- charts ---- */

  function stageRange() {
    const button = document.querySelector(`#stage-switch button[data-stage="${CSS.escape(view.stage)}"]`);
    if (!view.stage || !button || !button.dataset.first) return null;
    return [Number(button.dataset.first) - 0.5, Number(button.dataset.last) + 0.5];
  }

  function chosenTraces(name) {
    const choices = figures[name].choices;
    if (!choices.length) return null;
    return (choices.find((choice) => choice.label === view.choices[name]) ?? choices[0]).traces;
  }

  /* The values that lie in a range of x, for the y axis to fit them; error bars belong to them. */
  function yRange(data, [from, to], fromZero) {
    let low = Infinity, high = -Infinity;
    const stacks = new Map();
    for (const trace of data) {
      if (trace.visible === false || !Array.isArray(trace.y) || !Array.isArray(trace.x)) continue;
      trace.x.forEach((x, i) => {
        let y = trace.y[i];
        if (x < from || x > to || typeof y !== "number") return;
        if (trace.stackgroup) {
          const key = trace.stackgroup + " " + x;
          y += stacks.get(key) ?? 0;
          stacks.set(key, y);
        }
        low = Math.min(low, y - (trace.error_y?.arrayminus?.[i] ?? 0), trace.stackgroup ? 0 : Infinity);
        high = Math.max(high, y + (trace.error_y?.array?.[i] ?? 0));
      });
    }
    if (low > high) return null;
    if (fromZero) low = Math.min(low, 0);
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    return [fromZero && low === 0 ? 0 : low - room, high + room];
  }

  function draw(name) {
    const place = document.getElementById("chart-" + name);
    if (!place || !figures[name]) return;
    const { figure, byStep } = figures[name];
    const traces = chosenTraces(name);
    const data = figure.data.map((trace, i) => ({ ...trace, visible: !traces || traces.includes(i) }));
    const layout = structuredClone(figure.layout);
    const range = byStep ? stageRange() : null;
    layout.dragmode = HAS_MOUSE ? "zoom" : false;
    layout.uirevision = view.stage + "|" + (traces ?? ""); // what the legend hides stays hidden until it changes
    if (range) {
      layout.xaxis.range = range;
      const isFlat = layout.yaxis.type !== "category" && layout.yaxis.rangemode;
      const fitted = layout.yaxis.type === "category" ? null : yRange(data, range, isFlat === "tozero");
      if (fitted) layout.yaxis.range = fitted;
    }
    const isNew = !place.on;
    layout.xaxis.uirevision = layout.yaxis.uirevision = ++drawings; // plotly would keep one end of a zoomed range
    bases.set(name, String(layout.xaxis.range)); // plotly writes into the arrays that it is given
    if (zooms.has(name)) {
      const { x, y } = zooms.get(name);
      if (x) layout.xaxis.range = [...x];
      if (y) layout.yaxis.range = [...y];
    }
    Plotly.react(place, data, layout, CONFIG);
    if (isNew) place.on("plotly_relayout", (change) => keepZoom(name, change));
  }

  /* What is zoomed to by hand stays while data come in, until it is reset or another training stage is chosen. */
  const zooms = new Map(), bases = new Map();
  let drawings = 0;
  function keepZoom(name, change) {
    const range = (axis) => {
      const ends = change[axis + ".range"] ?? [change[axis + ".range[0]"], change[axis + ".range[1]"]];
      return ends.every((end) => end !== undefined) ? [...ends] : undefined;
    };
    const x = range("xaxis"), y = range("yaxis");
    if (change["xaxis.autorange"] || (x && String(x) === bases.get(name))) zooms.delete(name);
    else if (x || y) zooms.set(name, { ...zooms.get(name), ...(x && { x }), ...(y && { y }) });
  }

  /* One chart after another, so that the page can be read and scrolled meanwhile. */
  let drawing = 0;
  async function drawAll() {
    const mine = ++drawing;
    for (const chart of document.querySelectorAll(".chart")) {
      if (mine !== drawing) return;
      draw(chart.id.slice(6));
      await new Promise((resolve) => setTimeout(resolve));
    }
    document.body.dataset.drawn = String(mine);
  }

  /* ---- tables ---- */

  function show() {
    const stages = new Set([...document.querySelectorAll("#stage-switch button")].map((b) => b.dataset.stage));
    if (!stages.has(view.stage)) view.stage = "";
    for (const button of document.querySelectorAll("#stage-switch button")) {
      button.setAttribute("aria-pressed", String(button.dataset.stage === view.stage));
    }
    for (const row of document.querySelectorAll("[data-of-stage]")) {
      row.hidden = view.stage !== "" && !JSON.parse(row.dataset.ofStage).includes(view.stage);
    }
    for (const control of document.querySelectorAll("#incidents [data-filter]")) {
      if (control.value !== view[control.dataset.filter]) control.value = view[control.dataset.filter];
    }
    for (const choice of document.querySelectorAll("select[data-chart]")) {
      const label = view.choices[choice.dataset.chart];
      if (label && [...choice.options].some((option) => option.value === label)) choice.value = label;
    }
    filterIncidents();
  }

  function filterIncidents() {
    const rows = [...document.querySelectorAll("#incidents tbody tr")];
    const words = view.words.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !(
        (!view.stage || row.dataset.stage === view.stage) &&
        (!view.what || row.dataset.what === view.what) &&
        (!view.attempt || row.dataset.attempt === view.attempt) &&
        words.every((word) => text.includes(word))
      );
      shown += !row.hidden;
    }
    const count = document.getElementById("incidents-shown");
    if (count) count.textContent = shown === rows.length ? `${shown}` : `${shown} of ${rows.length}`;
  }

  /* ---- hands of the reader ---- */

  function choose(key, value) {
    view[key] = value;
    keepView();
    show();
    if (key === "stage") {
      zooms.clear();
      drawAll();
    }
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    const link = event.target.closest('a[href^="#"]');
    if (button?.dataset.stage !== undefined) choose("stage", button.dataset.stage);
    else if (button?.dataset.copies) copy(button);
    else if (link) {
      event.preventDefault(); // the address keeps what is chosen
      document.getElementById(link.getAttribute("href").slice(1))?.scrollIntoView();
    }
  });
  document.addEventListener("input", (event) => {
    const control = event.target;
    if (control.dataset.filter) choose(control.dataset.filter, control.value);
    if (control.dataset.chart) {
      view.choices[control.dataset.chart] = control.value;
      keepView();
      draw(control.dataset.chart);
    }
  });
  addEventListener("hashchange", () => {
    Object.assign(view, readView());
    zooms.clear();
    show();
    drawAll();
  });

  async function copy(button) {
    const source = document.getElementById(button.dataset.copies);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(source); // a browser that gives no page the clipboard; Ctrl-C takes it
      button.textContent = "selected";
    }
    setTimeout(() => (button.textContent = "copy"), 1500);
  }

  /* ---- the age of what is shown ---- */

  function duration(seconds) {
    if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s`;
    if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
    if (seconds < 48 * 3600) return `${Math.round(seconds / 3600)} h`;
    return `${Math.round(seconds / 86400)} days`;
  }

  function showAges() {
    for (const element of document.querySelectorAll("[data-since]")) {
      element.textContent = duration(Date.now() / 1000 - Number(element.dataset.since));
    }
    const silent = document.getElementById("silent");
    if (silent) {
      const seconds = Date.now() / 1000 - Number(silent.dataset.last);
      silent.hidden = !(live && seconds > Number(silent.dataset.after));
    }
  }

  /* ---- live ---- */

  /* Put new sections in the place of old ones that have changed; charts stay what they are, zoomed as they are. */
  function take(html) {
    const parsed = new DOMParser().parseFromString(html, "text/html");
    const fresh = [...parsed.body.children].filter((element) => element.id);
    const anchor = sections().find((section) => section.getBoundingClientRect().bottom > 80);
    const before = anchor?.getBoundingClientRect().top;
    const focused = document.activeElement;
    const place = focused?.id ? { id: focused.id, at: focused.selectionStart } : null;
    let previous = null;
    for (const section of fresh) {
      const text = section.outerHTML;
      const old = document.getElementById(section.id);
      if (!old || pristine.get(section.id) !== text) {
        pristine.set(section.id, text);
        const element = document.importNode(section, true);
        if (old) keepPlaces(old, element);
        for (const chart of element.querySelectorAll(".chart")) {
          const drawn = document.getElementById(chart.id);
          if (drawn) chart.replaceWith(drawn);
        }
        if (old) old.replaceWith(element);
        else if (previous) previous.after(element);
        else document.getElementById("content").prepend(element);
      }
      previous = document.getElementById(section.id);
    }
    const ids = new Set(fresh.map((section) => section.id));
    for (const section of sections()) {
      if (!ids.has(section.id)) {
        pristine.delete(section.id);
        section.remove();
      }
    }
    show(); // it fills the filters in, which moves the caret
    if (place && document.activeElement !== document.getElementById(place.id)) {
      const control = document.getElementById(place.id);
      control?.focus({ preventScroll: true });
      if (place.at != null) control?.setSelectionRange?.(place.at, place.at);
    }
    const moved = anchor && document.getElementById(anchor.id);
    if (moved) scrollBy({ top: moved.getBoundingClientRect().top - before, behavior: "instant" });
  }

  function keepPlaces(old, element) {
    const open = new Set([...old.querySelectorAll("details[open]")].map((d) => d.dataset.key));
    for (const details of element.querySelectorAll("details")) {
      if (details.dataset.key && open.has(details.dataset.key)) details.open = true;
    }
    const wide = [...old.querySelectorAll(".wide")];
    [...element.querySelectorAll(".wide")].forEach((box, i) => {
      const left = wide[i]?.scrollLeft;
      if (left) requestAnimationFrame(() => (box.scrollLeft = left));
    });
  }

  function say(text, isBad) {
    const line = document.getElementById("live");
    line.textContent = text;
    line.classList.toggle("failed", isBad);
  }

  async function follow() {
    let stamp = document.body.dataset.stamp;
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      if (document.hidden) continue;
      try {
        const state = await (await fetch("state", { cache: "no-store" })).json();
        if (state.stamp !== stamp) {
          const answer = await fetch("content", { cache: "no-store" });
          if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
          const content = await answer.json();
          stamp = content.stamp;
          figures = content.figures;
          document.title = content.title;
          take(content.body);
          await drawAll();
        }
        say("live", false);
      } catch (error) {
        say(`not live: ${error.message}`, true);
      }
    }
  }

  show();
  drawAll();
  showAges();
  setInterval(showAges, 1000);
  if (live) follow();
})();
