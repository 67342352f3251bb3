"use strict";
// The page is whole without this. It shows the values of a chart's lines at the step under the pointer.
for (const svg of document.querySelectorAll(".chart svg")) {
  const figures = (name) => svg.dataset[name].split(" ").map(Number);
  const [left, right, top, bottom] = figures("box"), [first, last] = figures("steps"), [low, high] = figures("values");
  const log = svg.dataset.log === "1", output = svg.parentElement.querySelector("output");
  const lines = [...svg.querySelectorAll("path[data-name]:not(.batches)")].map((path) => ({
    name: path.dataset.name,
    points: [...path.getAttribute("d").matchAll(/[ML](-?[\d.]+) (-?[\d.]+)/g)].map((one) => [Number(one[1]), Number(one[2])]),
  }));
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
  cursor.setAttribute("class", "cursor");
  const value = (y) => {
    const share = (bottom - y) / (bottom - top);
    return log ? low * (high / low) ** share : low + share * (high - low);
  };
  const text = (number) => Number(number.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 });
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = Math.min(right, Math.max(left, (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width));
    const shown = [`about step ${Math.round(first + (at - left) / (right - left) * (last - first)).toLocaleString("en")}`];
    for (const { name, points } of lines) {
      if (!points.length) continue;
      const near = points.reduce((best, one) => (Math.abs(one[0] - at) < Math.abs(best[0] - at) ? one : best));
      shown.push(`${name}: ${text(value(near[1]))}`);
    }
    cursor.setAttribute("d", `M${at} ${top}V${bottom}`);
    svg.append(cursor);
    output.hidden = false;
    output.textContent = shown.join("\n");
  });
  svg.addEventListener("pointerleave", () => {
    cursor.remove();
    output.hidden = true;
  });
}
