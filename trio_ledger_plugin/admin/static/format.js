"use strict";

// Texts and elements. All that comes from the server becomes text, never markup.

function byId(id) {
  return document.getElementById(id);
}

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.map(String));
  return made;
}

function count(value) {
  return Number(value).toLocaleString("en");
}

// The decimal digits of an amount, which may exceed what a number can hold, in the groups that counts have.
function amount(digits) {
  return String(digits).replace(/\B(?=(\d{3})+$)/g, ",");
}

function rate(value) {
  if (value >= 100) return count(Math.round(value));
  if (value >= 10) return value.toFixed(1);
  return value ? value.toFixed(2).replace(/\.?0+$/, "") : "0";
}

function milliseconds(value) {
  if (value === null) return "\u2013";
  if (value >= 100) return count(Math.round(value));
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

function duration(seconds) {
  seconds = Math.max(0, Math.floor(seconds));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds / 60) % 60} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor(seconds / 3600) % 24} h`;
}

function clockTime(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString("en-GB");
}

function dayAndTime(seconds) {
  const when = new Date(seconds * 1000);
  const day = `${when.getFullYear()}-${String(when.getMonth() + 1).padStart(2, "0")}-${String(when.getDate()).padStart(2, "0")}`;
  return `${day} ${when.toLocaleTimeString("en-GB")}`;
}

// Set a text only if it is another one: screen readers announce every change.
function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

// Fill a list of terms and values; each fact is [term, value, class of the pair].
function fillFacts(list, facts, none) {
  const pairs = facts.map(([term, value, className]) => {
    const pair = element("div", className);
    pair.append(element("dt", "", term), element("dd", "", value));
    return pair;
  });
  if (!pairs.length) {
    const pair = element("div", "none");
    pair.append(element("dt", "", none));
    pairs.push(pair);
  }
  list.replaceChildren(...pairs);
}
