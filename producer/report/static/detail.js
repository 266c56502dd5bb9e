// One sample in detail: pictures, caption, the answer of each agent, and where the sample comes from.
"use strict";

capflow.detail = (() => {
  const GRADE_NAMES = { 1: "bad", 2: "good", 3: "excellent" };
  const dialog = document.getElementById("detail");
  const body = document.getElementById("detail-body");
  const title = document.getElementById("detail-title");
  const place = document.getElementById("detail-place");
  const note = document.getElementById("note");
  const markButtons = [...document.querySelectorAll("#mark button")];
  const { make } = capflow;
  let open = null;

  const words = (name) => name.replaceAll("_", " ");
  const percent = (share) => `${(100 * share).toFixed(share > 0.99 || share < 0.01 ? 1 : 0)} %`;
  const clock = (seconds) => `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;
  const count = (number) => number.toLocaleString("en");

  const film = (original, file) => {
    const video = make("video", { src: original, poster: file, controls: true, preload: "none", ariaLabel: "The sample's video" });
    video.addEventListener("error", () => video.replaceWith(make("p", { className: "quiet", textContent: "This browser cannot play it; open the original in a player." })));
    return video;
  };

  const picture = ({ file, path, kind, reason, times, original }) => {
    const name = make("figcaption", { dir: "auto", textContent: path });
    if (times.length) name.append(make("small", { textContent: `frames at ${times.map(clock).join(", ")}` }));
    if (!file) return make("figure", {}, make("p", { className: "missing", dir: "auto", textContent: reason ?? "no picture" }), name);
    const image = make("img", { src: file, alt: `The sample's ${kind}`, decoding: "async" });
    const link = make("a", { href: original ?? file, target: "_blank", rel: "noopener", title: original ? "Open the original" : "Open alone" }, image);
    if (original) name.append(" ", make("a", { href: original, target: "_blank", rel: "noopener", textContent: `original ${kind}` }));
    return make("figure", {}, link, ...(original && kind === "video" ? [film(original, file)] : []), name);
  };

  const pictures = (sample) => {
    const figures = sample.pictures.map(picture);
    if (sample.hidden_pictures) figures.push(make("p", { className: "missing", textContent: `${sample.hidden_pictures} not drawn` }));
    return make("div", { className: "pictures" }, ...figures);
  };

  const facts = (sample) => {
    const routed = sample.confidence === null ? "given by the dataset" : `routed with ${percent(sample.confidence)} confidence`;
    const shares = Object.entries(sample.domain_shares).filter(([, share]) => share >= 0.01).sort((one, other) => other[1] - one[1]);
    return make(
      "p",
      { className: "facts" },
      make("span", { className: "state", textContent: sample.state, dataset: { state: sample.state } }),
      make("span", { className: "domain", textContent: sample.domain ?? "no domain" }),
      sample.domain ? make("span", { className: "quiet", textContent: routed }) : null,
      shares.length > 1 ? make("span", { className: "quiet", textContent: `(${shares.slice(0, 3).map(([name, share]) => `${name} ${percent(share)}`).join(", ")})` }) : null,
    );
  };

  const section = (heading, ...children) => make("section", {}, make("h3", { textContent: heading }), ...children);

  const failure = ({ failure, attempts }) =>
    failure &&
    section(
      `Failed at ${failure.stage}: ${words(failure.kind)}`,
      make("p", { className: "failure", dir: "auto", textContent: failure.message }),
      make("p", { className: "quiet", textContent: `${attempts} ${attempts === 1 ? "attempt" : "attempts"}; ${failure.retry}` }),
    );

  const gradeRow = ([name, grade]) => {
    const dots = make("span", { className: "dots", dataset: { grade }, ariaHidden: "true" });
    for (const step of [1, 2, 3]) dots.append(make("i", { className: step <= grade ? "on" : "" }));
    const value = make("dd", {}, dots, `${grade} ${GRADE_NAMES[grade] ?? ""}`);
    return [make("dt", { textContent: words(name) }), value];
  };

  const grades = (sample) => {
    const rows = Object.entries(sample.grades);
    if (sample.overall !== null) rows.unshift(["overall", sample.overall]);
    if (!rows.length) return null;
    const errors = sample.errors.map((error) => make("li", { dir: "auto", textContent: error }));
    return section(
      "Scores",
      make("dl", { className: "grades" }, ...rows.flatMap(gradeRow)),
      ...(errors.length ? [make("p", { className: "quiet", textContent: "Errors that the judge found:" }), make("ul", {}, ...errors)] : []),
    );
  };

  const checks = (sample) => {
    const found = sample.checks;
    const share = (name) => `${words(name)} ${Math.round(100 * found[name])} %`;
    const shares = ["quote_support", "text_coverage", "claim_support"].filter((name) => typeof found[name] === "number").map(share);
    if (found.claims) shares.push(`claims: ${Object.entries(found.claims).map(([verdict, number]) => `${number} ${verdict}`).join(", ")}`);
    if (!shares.length) return null;
    const quotes = (found.unsupported_quotes ?? []).map((quote) => make("li", { dir: "auto", textContent: quote }));
    return section(
      "Checked",
      make("p", { textContent: shares.join(" · ") }),
      ...(quotes.length ? [make("p", { className: "quiet", textContent: "Quoted, but not read in the picture:" }), make("ul", {}, ...quotes)] : []),
    );
  };

  /** What a judge said, as people read it. */
  const judgement = ({ errors, grades }) =>
    make(
      "div",
      { className: "said" },
      make("p", { textContent: errors.length ? "Errors found:" : "No error named." }),
      make("ul", {}, ...errors.map((error) => make("li", { dir: "auto", textContent: error }))),
      make("p", { textContent: Object.entries(grades).map(([name, grade]) => `${words(name)} ${grade}`).join(" · ") }),
    );

  const answerText = (answer, caption) => {
    if (answer.grades) return judgement(answer);
    if (!answer.text) return make("p", { className: "said quiet", textContent: "No answer: the guard refused it, and the sample went on without." });
    if (answer.text === caption) return make("p", { className: "said quiet", textContent: "Its answer is the caption above." });
    return make("p", { className: "said", dir: "auto", textContent: answer.text });
  };

  /** The prompt behind an answer, read when it is opened. */
  const prompt = ({ workflow }) => {
    const text = make("pre", { dir: "auto", tabIndex: 0 });
    const closed = make("details", { className: "prompt" }, make("summary", {}, make("span", { className: "quiet", textContent: `Prompt ${workflow}` })), text);
    closed.addEventListener("toggle", async () => {
      const prompts = await capflow.data.prompts();
      const found = Object.hasOwn(prompts, workflow) ? prompts[workflow] : null;
      text.textContent = found ? `${found.system}\n\n${found.prompt}` : "This prompt has changed since, so that the report does not have it.";
    });
    return closed;
  };

  const said = (answer, caption = null) => {
    const summary = make(
      "summary",
      {},
      make("b", { textContent: words(answer.agent) }),
      make("span", { className: "quiet", textContent: `${answer.stage} · ${count(answer.completion_tokens)} tokens${answer.finish_reason === "length" ? ", cut off" : ""}` }),
    );
    return make("details", { open: ["perceive", "reason"].includes(answer.stage) }, summary, answerText(answer, caption), prompt(answer));
  };

  const finding = ({ agent, rule, outcome, evidence }) =>
    make("li", {}, `${words(outcome)}: ${words(rule)} (${words(agent)}) `, make("q", { className: "quiet", dir: "auto", textContent: evidence }));

  const guard = (sample) => {
    const findings = sample.said.flatMap((answer) => answer.guard);
    return findings.length ? section("What the guard did", make("ul", {}, ...findings.map(finding))) : null;
  };

  const reports = (sample) => {
    const answers = sample.said.map((answer) => said(answer, sample.caption));
    return answers.length ? section("What each agent said", ...answers) : null;
  };

  const others = (sample) =>
    sample.others.length ? section("Captions that were not chosen", ...sample.others.map((answer) => said(answer))) : null;

  const COLUMNS = {
    stage: (answer) => answer.stage,
    agent: (answer) => words(answer.agent),
    model: (answer) => answer.model,
    revision: (answer) => answer.revision.slice(0, 16),
    engine: (answer) => answer.engine,
    sampling: (answer) => answer.sampling,
    workflow: (answer) => answer.workflow,
    worker: (answer) => answer.worker,
    "prompt tokens": (answer) => count(answer.prompt_tokens),
    cached: (answer) => count(answer.cached_tokens),
    "answer tokens": (answer) => count(answer.completion_tokens),
    ended: (answer) => answer.finish_reason,
    seconds: (answer) => answer.seconds.toFixed(2),
  };
  const NUMBERS = new Set(["prompt tokens", "cached", "answer tokens", "seconds"]);

  const cell = (tag, column, text) => make(tag, { className: NUMBERS.has(column) ? "number" : "", textContent: text });

  const provenance = (sample) => {
    if (!sample.said.length) return null;
    const head = make("tr", {}, ...Object.keys(COLUMNS).map((column) => cell("th", column, column)));
    const rows = [...sample.said, ...sample.others].map((answer) => make("tr", {}, ...Object.entries(COLUMNS).map(([column, value]) => cell("td", column, value(answer)))));
    const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
    return section("Provenance", make("div", { className: "scroller", tabIndex: 0, role: "region", ariaLabel: "Provenance" }, table));
  };

  const entry = (sample) =>
    section(
      "Annotation entry",
      make("p", { className: "quiet", dir: "auto", textContent: sample.annotation }),
      make("pre", { dir: "auto", textContent: sample.entry, tabIndex: 0 }),
    );

  const texts = (sample) => {
    const caption = sample.caption === null ? null : make("p", { className: "caption", dir: "auto", textContent: sample.caption });
    const parts = [facts(sample), caption, failure(sample), grades(sample), checks(sample), guard(sample), reports(sample), others(sample), provenance(sample), entry(sample)];
    return make("div", { className: "texts" }, ...parts.filter(Boolean));
  };

  const button = (name, target) => {
    const element = document.getElementById(name);
    element.hidden = target === undefined;
    element.href = target === undefined ? "#" : capflow.filters.address({ sample: target, page: pageOf(target) });
  };

  const pageOf = (number) => {
    const at = capflow.gallery.numbers().indexOf(number);
    return at < 0 ? capflow.filters.asked().page : capflow.gallery.pageOf(at);
  };

  const neighbour = (by) => {
    const numbers = capflow.gallery.numbers();
    const at = numbers.indexOf(open);
    return at < 0 ? undefined : numbers[at + by];
  };

  /** Show the mark and the note of the open sample as they are now. */
  const drawMark = async () => {
    if (open === null) return;
    const mark = capflow.marks.of(await capflow.data.index(), open);
    for (const element of markButtons) element.ariaPressed = String(mark?.mark === element.dataset.mark);
    if (note !== document.activeElement) note.value = mark?.note ?? "";
  };

  const show = async (number) => {
    open = number;
    note.blur();
    const sample = await capflow.data.detailOf(number);
    if (open !== number) return;
    if (!sample) return close();
    const numbers = capflow.gallery.numbers();
    title.textContent = sample.name;
    place.textContent = numbers.includes(number) ? `${count(numbers.indexOf(number) + 1)} of ${count(numbers.length)}` : "";
    body.replaceChildren(pictures(sample), texts(sample));
    body.scrollTop = 0;
    button("previous", neighbour(-1));
    button("next", neighbour(1));
    await drawMark();
    if (!dialog.open) dialog.showModal();
    title.focus();
    dialog.dataset.ready = String(number);
  };

  const close = () => {
    const last = open;
    open = null;
    delete dialog.dataset.ready;
    if (dialog.open) dialog.close();
    capflow.gallery.cardOf(last)?.focus();
  };

  /** Show the sample of the view, or close the dialog. */
  const draw = (view) => {
    if (view.sample === null) return open === null ? undefined : close();
    return view.sample === open ? undefined : show(view.sample);
  };

  const step = (by) => {
    const target = neighbour(by);
    if (target !== undefined) location.replace(capflow.filters.address({ sample: target, page: pageOf(target) }));
  };

  dialog.addEventListener("close", () => {
    if (open !== null) location.assign(capflow.filters.address({ sample: null }));
  });
  document.getElementById("close").addEventListener("click", () => dialog.close());

  for (const element of markButtons) element.addEventListener("click", () => capflow.marks.toggle(open, element.dataset.mark));
  note.addEventListener("input", () => capflow.marks.note(open, note.value));

  return { draw, drawMark, step, number: () => open, isOpen: () => dialog.open, writeNote: () => dialog.open && note.focus() };
})();
