// The accounts: the server searches, sorts and cuts them into pages.

const COLUMNS = [
  ["name", "Account", "name", (row) => row.name],
  ["rate", "Requests/s", "number", (row) => rate(row.rate)],
  ["requests_received", "Received", "number", (row) => count(row.requests_received)],
  ["requests_sent", "Sent", "number", (row) => count(row.requests_sent)],
  ["in_use", "Under way", "number", (row) => count(row.in_use)],
  ["bytes_received", "Bytes in", "number", (row) => bytes(row.bytes_received)],
  ["bytes_sent", "Bytes out", "number", (row) => bytes(row.bytes_sent)],
  ["refused", "Refused", "number", (row) => count(row.refused)],
  ["connections", "Connections", "number", (row) => count(row.connections)],
  ["connected", "Connected for", "number", (row) => duration(row.connected)],
];

class Pager {
  // turn: called with the number of the wanted page.
  constructor(place, turn) {
    this.place = place;
    this.earlier = element("button", "", "Previous");
    this.later = element("button", "", "Next");
    this.where = element("span", "");
    this.page = 0;
    this.earlier.type = this.later.type = "button";
    this.earlier.addEventListener("click", () => turn(this.page - 1));
    this.later.addEventListener("click", () => turn(this.page + 1));
    place.append(this.where, this.earlier, this.later);
  }

  update(page, pages) {
    this.page = page;
    this.place.hidden = pages < 2;
    setText(this.where, `Page ${count(page + 1)} of ${count(pages)}`);
    this.earlier.disabled = page === 0;
    this.later.disabled = page >= pages - 1;
  }
}

class AccountsTable {
  // refresh: called when another part of the accounts is wanted.
  constructor(refresh) {
    this.query = { search: "", sort: "rate", order: "desc", page: 0, rows: 25 };
    this.refresh = refresh;
    this.pager = new Pager(byId("accounts-pager"), (page) => this.want({ page }));
    this.heads = COLUMNS.map(([name, title, className]) => {
      const head = element("th", className);
      head.scope = "col";
      const button = element("button", "", title);
      button.type = "button";
      button.addEventListener("click", () => this.sortBy(name));
      head.append(button);
      byId("columns").append(head);
      return head;
    });
    let typing = null;
    byId("search").addEventListener("input", (event) => {
      clearTimeout(typing);
      typing = setTimeout(() => this.want({ search: event.target.value.trim(), page: 0 }), 200);
    });
    this.showOrder();
  }

  want(change) {
    Object.assign(this.query, change);
    this.refresh();
  }

  sortBy(name) {
    const first = name === "name" ? "asc" : "desc";
    const other = first === "asc" ? "desc" : "asc";
    const order = this.query.sort === name && this.query.order === first ? other : first;
    this.want({ sort: name, order, page: 0 });
    this.showOrder();
  }

  showOrder() {
    COLUMNS.forEach(([name], index) => {
      if (name !== this.query.sort) this.heads[index].removeAttribute("aria-sort");
      else this.heads[index].setAttribute("aria-sort", this.query.order === "asc" ? "ascending" : "descending");
    });
  }

  // Returns whether the server has looked at its accounts yet; if not, it will have in a moment.
  update(answer) {
    const looked = answer.age !== null;
    const rows = answer.rows.map((row) => {
      const line = document.createElement("tr");
      line.append(...COLUMNS.map(([name, , className, show]) => {
        const cell = element("td", className, show(row));
        if (name === "name") cell.title = row.name;
        return cell;
      }));
      return line;
    });
    if (!rows.length) {
      const none = answer.total ? "No account has this in its name" : "No account is connected";
      const cell = element("td", "empty", looked ? none : "Looking at the accounts");
      cell.colSpan = COLUMNS.length;
      const line = document.createElement("tr");
      line.append(cell);
      rows.push(line);
    }
    byId("accounts").replaceChildren(...rows);
    this.query.page = answer.page;
    this.pager.update(answer.page, answer.pages);
    const found = answer.found === answer.total ? "" : `${count(answer.found)} found of `;
    // A server with many accounts is not asked for them every time.
    setText(byId("accounts-age"), answer.age < 3 ? "" : `as of ${duration(answer.age)} ago`);
    setText(byId("accounts-count"), looked ? `${found}${count(answer.total)} connected` : "");
    return looked;
  }
}
