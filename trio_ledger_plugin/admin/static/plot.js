// Lines over time, drawn as SVG.

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 46, right: 12, top: 10, bottom: 22 };

function drawn(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// The end of a scale: 1, 2 or 5 times a power of ten, not below the greatest value.
function niceTop(greatest) {
  if (!(greatest > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(greatest));
  return [1, 2, 5, 10].map((times) => times * power).find((top) => top >= greatest);
}

class Plot {
  // names: of the lines; show: returns a value as text.
  constructor(place, legend, names, show) {
    this.place = place;
    this.show = show;
    this.names = names;
    this.points = [];
    this.cursor = null;
    this.values = names.map((name, index) => {
      const key = drawn("svg", { viewBox: "0 0 20 8", "aria-hidden": "true" });
      key.append(drawn("line", { x1: 0, y1: 4, x2: 20, y2: 4, class: `s${index + 1}`, "stroke-width": 2.5 }));
      const value = element("b", "");
      const item = document.createElement("span");
      item.append(key, name, value);
      legend.append(item);
      return value;
    });
    this.tip = element("div", "tip");
    this.tip.hidden = true;
    place.addEventListener("pointermove", (event) => this.point(event));
    place.addEventListener("pointerleave", () => this.point(null));
    new ResizeObserver(() => this.draw()).observe(place);
  }

  // points: [time, value of each line or null, ...].
  update(points) {
    this.points = points;
    const last = points.at(-1);
    this.values.forEach((value, index) => setText(value, last ? this.show(last[index + 1]) : "\u2013"));
    this.draw();
  }

  point(event) {
    this.cursor = event && event.clientX - this.place.getBoundingClientRect().left;
    this.draw();
  }

  draw() {
    const width = this.place.clientWidth;
    const height = this.place.clientHeight;
    if (this.points.length < 2 || !width) {
      this.place.replaceChildren(element("div", "waiting", "Waiting for the first numbers"));
      return;
    }
    const right = width - MARGIN.right;
    const bottom = height - MARGIN.bottom;
    const first = this.points[0][0];
    const last = this.points.at(-1)[0];
    const greatest = Math.max(...this.points.flatMap((point) => point.slice(1)).filter((value) => value !== null), 0);
    const top = niceTop(greatest);
    const x = (time) => MARGIN.left + ((time - first) / (last - first)) * (right - MARGIN.left);
    const y = (value) => bottom - (value / top) * (bottom - MARGIN.top);
    const picture = drawn("svg", { role: "img", "aria-label": this.describe() });
    for (const share of [0, 0.25, 0.5, 0.75, 1]) {
      const at = y(share * top);
      picture.append(drawn("line", { x1: MARGIN.left, x2: right, y1: at, y2: at, class: share ? "grid" : "base" }));
      if (share !== 0.25 && share !== 0.75) {
        picture.append(drawn("text", { x: MARGIN.left - 8, y: at + 4, "text-anchor": "end" }, (share * top).toLocaleString("en")));
      }
    }
    picture.append(drawn("text", { x: MARGIN.left, y: height - 5 }, clockTime(first)));
    picture.append(drawn("text", { x: right, y: height - 5, "text-anchor": "end" }, clockTime(last)));
    // The first line is drawn last, so that it is above the others.
    this.names.map((_, index) => index + 1).reverse().forEach((line) => {
      picture.append(drawn("path", { d: this.path(line, x, y), class: `s${line}` }));
    });
    this.place.replaceChildren(picture);
    this.drawCursor(picture, x, bottom, width);
  }

  path(line, x, y) {
    let pen = "M";
    return this.points.map((point) => {
      if (point[line] === null) {
        pen = "M";
        return "";
      }
      const step = `${pen}${x(point[0]).toFixed(1)},${y(point[line]).toFixed(1)}`;
      pen = "L";
      // A point between two gaps is a line of no length, which has round ends.
      return step.startsWith("M") ? `${step}h0` : step;
    }).join("");
  }

  drawCursor(picture, x, bottom, width) {
    this.tip.hidden = this.cursor === null;
    if (this.cursor === null) return;
    const nearest = this.points.reduce((best, point) =>
      Math.abs(x(point[0]) - this.cursor) < Math.abs(x(best[0]) - this.cursor) ? point : best);
    const at = x(nearest[0]);
    picture.append(drawn("line", { x1: at, x2: at, y1: MARGIN.top, y2: bottom, class: "cursor" }));
    const lines = this.names.map((name, index) => `${name} ${this.show(nearest[index + 1])}`);
    this.tip.replaceChildren(...[clockTime(nearest[0]), ...lines].map((text) => element("div", "", text)));
    this.place.append(this.tip);
    this.tip.style.left = `${at > width / 2 ? at - this.tip.offsetWidth - 8 : at + 8}px`;
  }

  describe() {
    const last = this.points.at(-1);
    const now = this.names.map((name, index) => `${name} ${this.show(last[index + 1])}`).join(", ");
    return `${now}, at ${clockTime(last[0])}`;
  }
}
