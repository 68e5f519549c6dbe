// What is drawn, as strokes of points, and as the 64 numbers that the models know.

// The data set's authors had bitmaps of 32 x 32 and counted the black pixels in blocks of 4 x 4.
const SIDE = 32;
const BLOCK = 4;
const PEN_RADIUS = 2.8;

/** Returns 64 numbers from 0 to 16, or null if nothing is drawn.
 *
 * The strokes are fitted into the bitmap first, so the pen is as wide as theirs in a drawing of any
 * size, and wherever it is.
 */
export function pixelsOf(strokes) {
  const points = strokes.flat();
  if (!points.length) return null;
  const [left, right] = range(points.map(([x]) => x));
  const [top, bottom] = range(points.map(([, y]) => y));
  const room = SIDE - 2 * PEN_RADIUS;
  const scale = room / Math.max(right - left, bottom - top, 1e-6);
  const fit = ([x, y]) => [
    SIDE / 2 + (x - (left + right) / 2) * scale,
    SIDE / 2 + (y - (top + bottom) / 2) * scale,
  ];
  const lines = strokes.flatMap((stroke) => {
    const fitted = stroke.map(fit);
    return fitted.map((point, at) => [fitted[Math.max(0, at - 1)], point]);
  });
  const blocks = new Float32Array((SIDE / BLOCK) ** 2);
  for (let y = 0; y < SIDE; y++) {
    for (let x = 0; x < SIDE; x++) {
      if (lines.some(([from, to]) => distance([x + 0.5, y + 0.5], from, to) <= PEN_RADIUS)) {
        blocks[Math.floor(y / BLOCK) * (SIDE / BLOCK) + Math.floor(x / BLOCK)]++;
      }
    }
  }
  return blocks;
}

function range(values) {
  return [Math.min(...values), Math.max(...values)];
}

function distance([x, y], [x1, y1], [x2, y2]) {
  const [along, across] = [x2 - x1, y2 - y1];
  const length = along ** 2 + across ** 2;
  const part = length
    ? Math.max(0, Math.min(1, ((x - x1) * along + (y - y1) * across) / length))
    : 0;
  return Math.hypot(x - x1 - part * along, y - y1 - part * across);
}

const STEP = 0.04;
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** A canvas to draw on by finger, pen, mouse or keyboard; positions are from 0 to 1. */
export class Drawing {
  strokes = [];
  // The keyboard's pen, and whether it touches the paper.
  pen = [0.5, 0.2];
  isDown = false;

  constructor(canvas, changed) {
    this.canvas = canvas;
    this.changed = changed;
    canvas.addEventListener("pointerdown", (event) => {
      if (!event.isPrimary) return;
      canvas.setPointerCapture(event.pointerId);
      this.begin(this.place(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!event.isPrimary || !canvas.hasPointerCapture(event.pointerId)) return;
      // A finger moves faster than the page is drawn.
      const events = event.getCoalescedEvents?.() ?? [];
      for (const each of events.length ? events : [event]) this.extend(this.place(each));
    });
    canvas.addEventListener("keydown", (event) => this.press(event));
    for (const name of ["focus", "blur"]) canvas.addEventListener(name, () => this.paint());
    new ResizeObserver(() => this.paint()).observe(canvas);
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  begin(point) {
    this.strokes.push([point]);
    this.update();
  }

  extend(point) {
    this.strokes.at(-1)?.push(point);
    this.update();
  }

  clear() {
    this.strokes = [];
    this.isDown = false;
    this.update();
  }

  press(event) {
    if (event.key === " ") {
      this.isDown = !this.isDown;
      if (this.isDown) this.begin([...this.pen]);
    } else if (event.key in KEYS) {
      const [x, y] = KEYS[event.key];
      this.pen = [this.pen[0] + x * STEP, this.pen[1] + y * STEP].map((at) =>
        Math.max(0, Math.min(1, at)),
      );
      if (this.isDown) this.extend([...this.pen]);
    } else if (event.key === "Delete" || event.key === "Escape") {
      this.clear();
    } else {
      return;
    }
    event.preventDefault();
    this.paint();
  }

  update() {
    this.paint();
    this.changed(pixelsOf(this.strokes));
  }

  paint() {
    const { canvas } = this;
    const size = Math.round(canvas.clientWidth * devicePixelRatio) || 1;
    if (canvas.width !== size) canvas.width = canvas.height = size;
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, size, size);
    const style = getComputedStyle(canvas);
    context.strokeStyle = context.fillStyle = style.color;
    context.lineWidth = size * 0.075;
    context.lineCap = context.lineJoin = "round";
    for (const stroke of this.strokes) {
      context.beginPath();
      for (const [x, y] of [stroke[0], ...stroke]) context.lineTo(x * size, y * size);
      context.stroke();
    }
    if (document.activeElement === canvas && canvas.matches(":focus-visible")) {
      context.beginPath();
      context.arc(this.pen[0] * size, this.pen[1] * size, size * 0.03, 0, 7);
      context.fillStyle = style.accentColor;
      context.fill();
    }
  }
}
