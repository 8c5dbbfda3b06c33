"use strict";
// Everything from the data reaches the page through textContent, which is never parsed as HTML.
(() => {
  const PAGE = 100;
  const data = JSON.parse(document.getElementById("data").textContent);
  const size = data.step.length;
  const input = (id) => document.getElementById(id);
  const question = (i) => data.questions[data.question[i]];
  const text = (i) => `${question(i)}\n${data.gold[i] ?? ""}\n${data.answer[i] ?? ""}\n${data.completion[i]}`.toLowerCase();
  let texts = null; // lowered once, at the first search, so that the page is there before
  let found = [];
  let start = 0;

  function verdict(i) {
    if (data.strict[i] === null) return "";
    return data.strict[i] ? "right" : data.lenient[i] ? "form" : "wrong";
  }

  const WORDS = { right: ["right", "yes"], form: ["right, wrong form", "half"], wrong: ["wrong", "no"], "": ["", ""] };

  const LABELS = ["step", "", "reward", "tokens", "", "answer", "right answer"];

  function element(tag, content, className) {
    const made = document.createElement(tag);
    made.textContent = content ?? "";
    if (className) made.className = className;
    return made;
  }

  function labelled(made, label) {
    if (label) made.dataset.label = label; // shown by narrow pages, which have no table head
    return made;
  }

  function number(id, otherwise) {
    const value = input(id).value;
    return value === "" ? otherwise : Number(value);
  }

  function filter() {
    const wanted = input("search").value.toLowerCase();
    const judged = input("verdict").value;
    const [stepFrom, stepTo] = [number("step_from", -Infinity), number("step_to", Infinity)];
    const [rewardFrom, rewardTo] = [number("reward_from", -Infinity), number("reward_to", Infinity)];
    if (wanted) texts ??= data.step.map((_, i) => text(i));
    found = [];
    for (let i = 0; i < size; i++) {
      if (data.step[i] < stepFrom || data.step[i] > stepTo) continue;
      if (data.reward[i] < rewardFrom || data.reward[i] > rewardTo) continue;
      if (judged && verdict(i) !== judged) continue;
      if (wanted && !texts[i].includes(wanted)) continue;
      found.push(i);
    }
    turnTo(0);
  }

  function turnTo(first) {
    start = first;
    const end = Math.min(start + PAGE, found.length);
    const shown = found.length ? `, ${start + 1} to ${end} shown` : "";
    input("count").textContent = `${found.length} of ${size} completions${shown}`;
    input("previous").disabled = start === 0;
    input("next").disabled = end === found.length;
    input("rows").replaceChildren(...found.slice(start, end).map(row));
  }

  function row(i) {
    const made = document.createElement("details");
    const line = element("summary", "", "line");
    const [word, colour] = WORDS[verdict(i)];
    const reward = data.reward[i].toFixed(2);
    const cells = [data.step[i], word, reward, data.tokens[i], question(i), data.answer[i], data.gold[i]];
    cells.forEach((cell, k) => line.append(labelled(element("span", cell, k === 1 ? colour : ""), LABELS[k])));
    made.append(line);
    line.addEventListener("click", () => made.append(body(i)), { once: true }); // Enter and space click, too
    return made;
  }

  function body(i) {
    const made = element("div", "", "body");
    const parts = data.names.map((name, k) => `${name} ${data.parts[i][k] ?? "none"}`).join(", ");
    const sections = [
      ["Question", question(i)],
      ["Right answer", data.gold[i]],
      ["Answer that the grader found", data.answer[i] === "" ? "none" : data.answer[i]],
      ["Completion: reasoning and answer, as the model wrote it", data.completion[i]],
      ["Reward", `${data.reward[i]} (${parts}), advantage ${data.advantage[i]}`],
    ];
    for (const [title, content] of sections) {
      if (content !== null && content !== undefined) made.append(element("h3", title), element("pre", content));
    }
    return made;
  }

  for (const id of ["search", "step_from", "step_to", "reward_from", "reward_to"]) {
    input(id).addEventListener("input", filter);
  }
  input("verdict").addEventListener("change", filter);
  input("clear").addEventListener("click", () => {
    for (const each of document.querySelectorAll("#filters input, #filters select")) each.value = "";
    filter();
  });
  input("previous").addEventListener("click", () => turnTo(start - PAGE));
  input("next").addEventListener("click", () => turnTo(start + PAGE));
  filter();
})();
