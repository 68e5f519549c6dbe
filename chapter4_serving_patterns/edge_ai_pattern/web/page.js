// The page: what is drawn is predicted here, and nothing of it leaves this device.

import { Drawing } from "./draw.js";
import { predict } from "./model.js";
import { hasOneBefore, load, Refused, rollBack, update } from "./update.js";

const part = (id) => document.getElementById(id);
const DAY_MILLISECONDS = 86_400_000;

let installed = null;
let drawn = null;
const bars = Array.from({ length: 10 }, (_, digit) => {
  const row = part("bar").content.firstElementChild.cloneNode(true);
  row.querySelector("b").textContent = digit;
  row.querySelector("[role=meter]").ariaLabel = `probability of ${digit}`;
  part("bars").append(row);
  return row;
});
const drawing = new Drawing(part("paper"), (pixels) => {
  drawn = pixels;
  show();
});

/** Predicts rows with the model that is installed. */
export async function predictRows(rows) {
  return predict(installed.model, rows);
}

async function show() {
  if (!installed) return;
  const pixels = drawn;
  const [probabilities] = pixels ? await predictRows([pixels]) : [Array(10).fill(0)];
  // The finger has moved on.
  if (pixels !== drawn) return;
  const best = probabilities.indexOf(Math.max(...probabilities));
  bars.forEach((row, digit) => {
    const percent = Math.round(100 * probabilities[digit]);
    const meter = row.querySelector("[role=meter]");
    meter.ariaValueNow = percent;
    meter.firstElementChild.style.width = `${percent}%`;
    row.querySelector("span:last-child").textContent = pixels ? `${percent} %` : "";
    row.classList.toggle("best", Boolean(pixels) && digit === best);
  });
  part("label").textContent = pixels ? installed.model.labels[best] : "–";
  part("says").textContent = pixels
    ? `This looks like a ${installed.model.labels[best]} (${Math.round(100 * probabilities[best])} %).`
    : "Draw a digit from 0 to 9.";
}

async function use(release) {
  installed = release;
  const { version, issued, model } = release.release;
  const days = Math.max(0, Math.floor((Date.now() - Date.parse(issued)) / DAY_MILLISECONDS));
  part("version").textContent = version;
  part("size").textContent = `${Math.ceil(model.bytes / 1000)} kB`;
  part("age").textContent = days === 1 ? "1 day" : `${days} days`;
  part("back").disabled = !(await hasOneBefore());
  part("paper").classList.add("ready");
  await show();
}

/** Shows what has come of an update; `state` is for programs. */
function tell(state, message) {
  part("news").textContent = message;
  document.documentElement.dataset.update = state;
}

async function ask() {
  tell("asking", "Asking for an update …");
  try {
    const found = await update();
    if (found) await use(found);
    const { version } = installed.release;
    tell(
      found ? "updated" : "current",
      found ? `Updated to version ${version}.` : "This is the newest model.",
    );
  } catch (error) {
    const stays = installed ? ` Version ${installed.release.version} stays.` : "";
    if (error instanceof Refused) tell("refused", `Update refused: ${error.message}.${stays}`);
    else if (error.name === "QuotaExceededError")
      tell("full", `There is no room for the update.${stays}`);
    else if (error instanceof TypeError) tell("offline", `The publisher is out of reach.${stays}`);
    else throw error;
  }
}

async function goBack() {
  try {
    await use(await rollBack());
    tell("back", `Back to version ${installed.release.version}.`);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    tell("refused", `${error.message}.`);
  }
}

/** Returns once this device has the whole app, or cannot keep it. */
async function keepApp() {
  try {
    const registration = await navigator.serviceWorker.register("/worker.js", {
      updateViaCache: "none",
    });
    const first = registration.installing;
    if (registration.active || !first) return;
    await new Promise((resolve) => {
      first.addEventListener("statechange", () => {
        if (["activated", "redundant"].includes(first.state)) resolve();
      });
    });
    await navigator.storage.persist?.();
  } catch (error) {
    part("news").textContent = `Without the publisher, this page will not open: ${error.message}`;
  }
}

function offerInstallation() {
  addEventListener("beforeinstallprompt", (event) => {
    event.preventDefault();
    part("install").hidden = false;
    part("install").onclick = () => event.prompt();
  });
}

async function start() {
  offerInstallation();
  part("clear").onclick = () => drawing.clear();
  part("update").onclick = ask;
  part("back").onclick = goBack;
  await keepApp();
  const found = await load();
  if (found) await use(found);
  await ask();
}

start().catch((error) => {
  part("says").textContent = `This page cannot predict: ${error.message}.`;
  tell("failed", "");
});
