// What the reader marks: captions that are good, bad or unsure, with a note. They stay in this browser until exported.
"use strict";

capflow.marks = (() => {
  const MARKS = ["good", "bad", "unsure"];
  const GRADES = ["1", "2", "3", "none"];
  const VERSION = 1;
  const run = document.body.dataset.run;
  const place = `capflow-marks:${run}`;
  const said = document.getElementById("marking-said");
  const table = document.getElementById("marking-table");
  const { make } = capflow;
  const listeners = [];

  const read = () => {
    try {
      return new Map(Object.entries(JSON.parse(localStorage.getItem(place) ?? "{}")));
    } catch {
      return new Map();
    }
  };
  let marks = read();
  let isKept = true;

  const counted = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
  const count = (mark, grade) =>
    [...marks.values()].filter((each) => each.mark === mark && (grade === undefined || String(each.overall ?? "none") === grade)).length;

  /** In how many captions the judge's overall grade says what the reader says: 1 is bad, 2 and 3 are good. */
  const agreement = () => {
    const judged = [...marks.values()].filter((each) => each.mark !== "unsure" && each.overall !== null);
    const same = judged.filter((each) => (each.mark === "bad") === (each.overall === 1)).length;
    return judged.length ? ` The judge agrees on ${same} of ${judged.length} that are good or bad (${Math.round((100 * same) / judged.length)} %).` : "";
  };

  const cell = (mark, grade) => {
    const number = count(mark, grade);
    return make("td", { className: "number" }, number ? make("a", { href: capflow.filters.only({ mark, grade }), textContent: String(number) }) : "0");
  };

  const draw = () => {
    const parts = MARKS.filter((mark) => count(mark)).map((mark) => `${count(mark)} ${mark}`);
    said.textContent = marks.size ? `${counted(marks.size, "mark")}: ${parts.join(", ")}.${agreement()}` : "none yet: G good, B bad, U unsure, N note";
    if (!isKept) said.textContent += " This browser keeps none of them: export before you close the page.";
    table.replaceChildren(...MARKS.map((mark) => make("tr", {}, make("th", { scope: "row", textContent: mark }), ...GRADES.map((grade) => cell(mark, grade)))));
  };

  const changed = () => {
    try {
      localStorage.setItem(place, JSON.stringify(Object.fromEntries(marks)));
      isKept = true;
    } catch {
      isKept = false;
    }
    draw();
    for (const listener of listeners) listener();
  };

  const keyOf = (index, number) => {
    const width = index.keys.length / index.states.length;
    return index.keys.slice(number * width, (number + 1) * width);
  };

  /** The mark of a sample; null without one. */
  const of = (index, number) => marks.get(keyOf(index, number)) ?? null;

  /** Mark a sample; the mark that it has already is taken away. */
  const toggle = async (number, mark) => {
    const index = await capflow.data.index();
    const [sample] = await capflow.data.textOf(number);
    const key = keyOf(index, number);
    const earlier = marks.get(key);
    if (earlier?.mark === mark) marks.delete(key);
    else marks.set(key, { sample, mark, note: earlier?.note ?? "", overall: index.grades[number] });
    changed();
  };

  /** Keep a note with the mark of a sample, which is unsure if it had none. */
  const note = async (number, text) => {
    const index = await capflow.data.index();
    if (!of(index, number)) await toggle(number, "unsure");
    of(index, number).note = text;
    changed();
  };

  const document_ = () => ({ capflow_marks: VERSION, run, marks: [...marks].map(([key, each]) => ({ key, ...each })) });

  const save = () => {
    const file = new Blob([`${JSON.stringify(document_(), null, 1)}\n`], { type: "application/json" });
    const link = make("a", { href: URL.createObjectURL(file), download: `marks-${run.replace(/[^\w.-]+/g, "_")}.json` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  const add = (text) => {
    const found = JSON.parse(text);
    if (found?.capflow_marks !== VERSION || !Array.isArray(found.marks)) throw new TypeError("it was not exported from a report");
    const valid = found.marks.filter((each) => typeof each?.key === "string" && MARKS.includes(each.mark));
    for (const { key, sample = "", mark, note: text_ = "", overall = null } of valid) marks.set(key, { sample, mark, note: text_, overall });
    changed();
  };

  const load = async (event) => {
    const [file] = event.target.files;
    try {
      if (file) add(await file.text());
    } catch (error) {
      said.textContent = `${file.name} cannot be imported: ${error.message}`;
    }
    event.target.value = "";
  };

  document.getElementById("export-marks").addEventListener("click", save);
  document.getElementById("import-marks").addEventListener("change", load);

  return { MARKS, of, toggle, note, draw, onChange: (listener) => listeners.push(listener) };
})();
