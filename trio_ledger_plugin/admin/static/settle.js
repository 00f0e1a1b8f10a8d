// Transfers in doubt. A transfer is settled after two questions, since it cannot be undone.

const OUTCOMES = {
  applied: {
    button: "Confirm",
    title: "Confirm the transfer?",
    question: "Has the peer applied it? It then counts as sent.",
    go: "Yes, it was applied",
    last: "Confirm it for good?",
    lastGo: "Confirm the transfer",
    done: "confirmed",
  },
  "not applied": {
    button: "Reject",
    title: "Reject the transfer?",
    question: "Is it certain that the peer has not applied it and never will? It then counts as never sent.",
    go: "Yes, it was not applied",
    last: "Reject it for good?",
    lastGo: "Reject the transfer",
    done: "rejected",
  },
};
const FOR_GOOD = "This cannot be undone: if the peer's books say something else, the two ends will differ by this amount.";

class DoubtsTable {
  // settle: called with a transfer and an outcome, returns a promise; refresh: called when another page is wanted.
  constructor(settle, refresh) {
    this.settle = settle;
    this.page = 0;
    this.shown = "";
    this.asked = null;
    this.pager = new Pager(byId("doubts-pager"), (page) => {
      this.page = page;
      refresh();
    });
    this.refresh = refresh;
    byId("ask-cancel").addEventListener("click", () => byId("ask").close());
    byId("ask-go").addEventListener("click", () => this.goOn());
    byId("ask").addEventListener("close", () => this.closed());
  }

  // answer: null if there are no transfers in doubt.
  update(answer) {
    const rows = answer ? answer.rows : [];
    if (answer) {
      this.page = answer.page;
      setText(byId("doubts-count"), count(answer.total));
      this.pager.update(answer.page, answer.pages);
    }
    // Rows are replaced only if others are to be shown, so that the focus stays on a button.
    const text = JSON.stringify(rows);
    if (text === this.shown) return;
    const hadFocus = byId("doubts-card").contains(document.activeElement);
    this.shown = text;
    byId("doubts").replaceChildren(...rows.map((row) => this.line(row)));
    byId("doubts-card").hidden = !answer;
    if (hadFocus && !byId("doubts-card").contains(document.activeElement)) this.focus();
  }

  focus() {
    (byId("doubts").querySelector("button") || byId("main")).focus();
  }

  line(row) {
    const line = document.createElement("tr");
    line.setAttribute("role", "row");
    const key = element("td", "key", row.key);
    key.classList.add("code");
    const buttons = element("td", "settle");
    for (const [outcome, texts] of Object.entries(OUTCOMES)) {
      const button = element("button", "", texts.button);
      button.type = "button";
      button.setAttribute("aria-label", `${texts.button} the transfer of ${amount(row.amount)}, key ${row.key}`);
      button.addEventListener("click", () => this.ask(row, outcome));
      buttons.append(button);
    }
    const cells = [
      ["Account", element("td", "name", row.account || "\u2013")],
      ["Amount", element("td", "number", amount(row.amount))],
      ["Key", key],
      ["Sent", element("td", "time", dayAndTime(row.created))],
      ["", buttons],
    ];
    for (const [label, cell] of cells) {
      // The roles that a narrow window takes away by its layout.
      cell.setAttribute("role", "cell");
      cell.dataset.label = label;
      line.append(cell);
    }
    return line;
  }

  ask(row, outcome) {
    const texts = OUTCOMES[outcome];
    this.asked = { row, outcome, texts, isLast: false };
    setText(byId("ask-title"), texts.title);
    setText(byId("ask-question"), texts.question);
    setText(byId("ask-go"), texts.go);
    setText(byId("ask-error"), "");
    byId("ask-go").className = "primary";
    byId("ask-go").disabled = false;
    fillFacts(byId("ask-facts"), [
      ["Account", row.account || "the peer"],
      ["Amount", amount(row.amount)],
      ["Key", row.key],
      ["Sent", dayAndTime(row.created)],
    ]);
    byId("ask").showModal();
    byId("ask-cancel").focus();
  }

  async goOn() {
    const asked = this.asked;
    if (!asked.isLast) {
      asked.isLast = true;
      setText(byId("ask-title"), asked.texts.last);
      setText(byId("ask-question"), FOR_GOOD);
      setText(byId("ask-go"), asked.texts.lastGo);
      byId("ask-go").className = "danger";
      byId("ask-cancel").focus();
      return;
    }
    byId("ask-go").disabled = true;
    try {
      await this.settle(asked.row, asked.outcome);
    } catch (error) {
      setText(byId("ask-error"), error.message);
      byId("ask-go").disabled = false;
      return;
    }
    setText(byId("said"), `The transfer of ${amount(asked.row.amount)} was ${asked.texts.done}.`);
    byId("ask").close();
    this.refresh();
  }

  closed() {
    this.asked = null;
    if (document.activeElement === document.body) this.focus();
  }
}
