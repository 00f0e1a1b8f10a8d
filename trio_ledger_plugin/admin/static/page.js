// The page: asks the server again and again, and shows the answers.

const EVERY = 2000;
const SOON = 300;
const PATIENCE = 8000;
const TOKEN = "trio-ledger-plugin token";
const EVENTS = { Failed: "bad", Disconnected: "warn", TransfersInDoubt: "warn", EventsDropped: "warn" };

class TokenError extends Error {}

const state = { plugin: 0, paused: false, seen: 0, timer: null, round: 0 };
let memory = "";

function token(value) {
  // A browser may refuse storage; the token then lives until the page is loaded again.
  try {
    if (value !== undefined) sessionStorage.setItem(TOKEN, value);
    return sessionStorage.getItem(TOKEN) || "";
  } catch {
    if (value !== undefined) memory = value;
    return memory;
  }
}

async function ask(path, body) {
  const headers = token() ? { Authorization: `Bearer ${token()}` } : {};
  const options = { headers, cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(PATIENCE) };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body), signal: AbortSignal.timeout(4 * PATIENCE) });
  }
  const response = await fetch(path, options);
  if (response.status === 401) throw new TokenError(await response.text());
  if (!response.ok) throw new Error(await response.text() || `HTTP ${response.status}`);
  return response.json();
}

const accounts = new AccountsTable(() => refresh());
const doubts = new DoubtsTable(
  (row, outcome) => ask("/api/settle", { plugin: String(state.plugin), account: row.account, key: row.key, outcome }),
  () => refresh(),
);
const rates = new Plot(byId("rates"), byId("rates-legend"), ["received", "sent", "errors"], rate);
const times = new Plot(byId("times"), byId("times-legend"), ["median", "99 of 100"], milliseconds);

// Ask at once, and from then on at intervals. An answer to an earlier question is dropped.
async function refresh() {
  clearTimeout(state.timer);
  state.round += 1;
  const round = state.round;
  let next = EVERY;
  try {
    const overview = await ask(`/api/overview?plugin=${state.plugin}`);
    const query = new URLSearchParams({ plugin: state.plugin, ...accounts.query });
    const table = overview.has_accounts ? await ask(`/api/accounts?${query}`) : null;
    const open = overview.money && overview.money.doubts;
    const list = open ? await ask(`/api/doubts?plugin=${state.plugin}&page=${doubts.page}`) : null;
    if (round !== state.round) return;
    online();
    show(overview);
    byId("accounts-card").hidden = !table;
    if (table && !accounts.update(table)) next = SOON;
    doubts.update(list);
  } catch (error) {
    if (round !== state.round) return;
    if (error instanceof TokenError) {
      askForToken();
      return;
    }
    offline(error);
  }
  if (!state.paused && !document.hidden) state.timer = setTimeout(refresh, next);
}

function askForToken() {
  byId("content").hidden = true;
  byId("offline").hidden = true;
  byId("sign-out").hidden = true;
  badge("", "Token needed");
  const form = byId("sign-in");
  const error = token() ? "The token is wrong." : "";
  token("");
  setText(byId("token-error"), error);
  if (form.hidden || error) {
    form.hidden = false;
    byId("token").focus();
    byId("token").select();
  }
}

function badge(kind, text) {
  byId("health").className = `badge ${kind}`;
  setText(byId("health"), text);
}

function online() {
  state.seen = Date.now();
  byId("offline").hidden = true;
  byId("sign-in").hidden = true;
  byId("content").hidden = false;
  byId("content").classList.remove("stale");
  byId("sign-out").hidden = !token();
}

function offline(error) {
  const answered = !(error instanceof TypeError) && error.name !== "TimeoutError";
  const why = answered ? `The server answered: ${error.message}` : "The server does not answer.";
  const shown = state.seen ? ` What is shown is from ${clockTime(state.seen / 1000)}.` : "";
  setText(byId("offline"), `${why}${shown} Trying again.`);
  byId("offline").hidden = false;
  byId("content").classList.add("stale");
  badge("bad", "No answer");
}

function show(overview) {
  document.title = `${overview.name} \u2013 ledger plugin`;
  setText(byId("name"), overview.name);
  setText(byId("address"), overview.address);
  setText(byId("uptime"), `watched for ${duration(overview.watched_seconds)}`);
  showChoice(overview.plugins);
  showHealth(overview.health);
  showTiles(overview);
  rates.update(overview.points.map(([at, received, sent, errors]) => [at, received, sent, errors]));
  times.update(overview.points.map(([at, , , , median, slow]) => [at, median, slow]));
  showBudgets(overview.budgets);
  const reached = overview.reached.map(([text, number]) => [text, count(number), number ? "hit" : ""]);
  fillFacts(byId("reached"), reached);
  showErrors(overview.errors);
  showMoney(overview.money);
  showEvents(overview.events);
}

function showChoice(names) {
  const select = byId("plugin");
  byId("choice").hidden = names.length < 2;
  if (select.options.length !== names.length) {
    select.replaceChildren(...names.map((name) => element("option", "", name)));
    select.selectedIndex = state.plugin;
  }
}

function showHealth(health) {
  if (health.reasons.length) badge("bad", "Failing");
  else if (health.warnings.length) badge("warn", "Needs attention");
  else badge("good", "Healthy");
  const items = [...health.reasons.map((text) => ["bad", text]), ...health.warnings.map((text) => ["warn", text])];
  byId("problems").hidden = !items.length;
  byId("problems").replaceChildren(...items.map(([kind, text]) => element("li", kind, text)));
}

function showTiles(overview) {
  const { statistics, money, points } = overview;
  const [, received, sent, , median, slow] = points.at(-1) || [0, 0, 0, 0, null, null];
  const codes = [...Object.entries(overview.errors.handled), ...Object.entries(overview.errors.answered)];
  const failed = codes.reduce((sum, [, number]) => sum + number, 0);
  const [frequent] = codes.reduce((best, each) => (each[1] > best[1] ? each : best), ["", 0]);
  const tiles = [
    ["Requests/s", rate(received + sent), `${count(statistics.requests_received)} received, ${count(statistics.requests_sent)} sent`],
    ["Under way", count(statistics.handlers_running + statistics.calls_in_flight), `handlers: ${count(statistics.handlers_running)}, calls: ${count(statistics.calls_in_flight)}`],
    ["Handler time", `${milliseconds(median)} ms`, `99 of 100 within ${milliseconds(slow)} ms`],
    ["Connections", count(statistics.links), `${bytes(statistics.bytes_received)} in, ${bytes(statistics.bytes_sent)} out`],
    ["Errors", count(failed), failed ? `most often ${frequent}` : "none so far"],
  ];
  if (money) {
    tiles.push(["In doubt", count(money.doubts), money.doubts ? `the oldest for ${duration(money.oldest_seconds)}` : "nothing to settle", money.doubts ? "warn" : ""]);
  }
  byId("tiles").replaceChildren(...tiles.map(([term, value, note, kind]) => {
    const tile = element("div", `tile ${kind || ""}`);
    tile.append(element("dt", "", term), element("dd", "", value), element("dd", "note", note));
    return tile;
  }));
}

function showBudgets(budgets) {
  byId("budgets").replaceChildren(...budgets.map(({ name, text, used, limit }) => {
    const shown = name.endsWith("bytes") ? bytes : count;
    const share = limit ? used / limit : 0;
    const meter = element("dd", `meter ${share >= 0.9 ? "bad" : share >= 0.7 ? "warn" : ""}`);
    const fill = element("span", "");
    fill.style.width = `${Math.min(100, share * 100)}%`;
    meter.setAttribute("aria-hidden", "true");
    meter.append(fill);
    const pair = document.createElement("div");
    pair.append(element("dt", "", text), element("dd", "", `${shown(used)} of ${shown(limit)}`), meter);
    return pair;
  }));
}

function showErrors(errors) {
  const directions = [["handled", "sent"], ["answered", "received"]];
  const facts = directions.flatMap(([name, said]) =>
    Object.entries(errors[name]).sort((a, b) => b[1] - a[1]).map(([code, number]) => [`${code}, ${said}`, count(number)]));
  fillFacts(byId("errors"), facts, "None so far");
}

function showMoney(money) {
  byId("money").hidden = !money;
  if (!money) return;
  const states = Object.entries(money.states).sort().map(([name, number]) => [`transfers ${name.replace("_", " ")}`, count(number)]);
  fillFacts(byId("sums"), [
    ["sent", amount(money.sent)],
    ["received", amount(money.received)],
    ["without an outcome", amount(money.unsettled), money.unsettled === "0" ? "" : "hit"],
    ...states,
    ["the store's answer", money.failed ? "failed" : `${milliseconds(money.store_ms)} ms`, money.failed ? "hit" : ""],
  ]);
}

function showEvents(events) {
  const list = byId("events");
  const items = events.map(({ at, kind, text }) => {
    const item = document.createElement("li");
    const time = element("time", "", clockTime(at));
    time.dateTime = new Date(at * 1000).toISOString();
    item.append(time, element("span", EVENTS[kind] || "", text));
    return item;
  });
  if (!items.length) items.push(element("li", "quiet", "None since the page is served"));
  list.replaceChildren(...items);
}

byId("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = byId("token").value.trim();
  byId("token").value = "";
  if (/[^!-~]/.test(given)) {
    setText(byId("token-error"), "A token has only letters, digits and signs of ASCII.");
    return;
  }
  token(given);
  refresh();
});
byId("sign-out").addEventListener("click", () => {
  token("");
  // Nothing that was shown stays in the page.
  location.reload();
});
byId("pause").addEventListener("click", () => {
  state.paused = !state.paused;
  byId("pause").setAttribute("aria-pressed", String(state.paused));
  setText(byId("pause"), state.paused ? "Go on" : "Pause");
  if (state.paused) clearTimeout(state.timer);
  else refresh();
});
document.addEventListener("visibilitychange", () => {
  // A page that is not seen asks for nothing.
  if (!document.hidden && !state.paused) refresh();
});
byId("plugin").addEventListener("change", (event) => {
  state.plugin = event.target.selectedIndex;
  accounts.query.page = doubts.page = 0;
  refresh();
});
refresh();
