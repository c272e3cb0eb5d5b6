// Refresh the page, search while typing, follow the output of a run. Without this script, links and a form do the same.
"use strict";
(() => {
    const REFRESH = 5000, GROW = 500, TYPED = 120; // milliseconds: between refreshes, between parts of a log, after a key
    const live = document.getElementById("live"), after = document.getElementById("after");
    const notice = document.getElementById("notice"), search = document.getElementById("q");
    const icon = document.querySelector("link[rel=icon]");
    const GREY = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'%3E"
        + "%3Ccircle cx='4' cy='4' r='4' fill='%23808080'/%3E%3C/svg%3E";
    let shown = "", loading = new AbortController();

    // Load the parts of the page at `address` that changed: for a refresh, a search, an order, a state and a page.
    async function load(address) {
        loading.abort();
        loading = new AbortController();
        const url = new URL(address, location);
        url.searchParams.set("known", [...live.querySelectorAll("[data-key]")].map((row) => row.dataset.key).join("."));
        try {
            const response = await fetch(url, { signal: loading.signal });
            if (response.redirected) return location.assign(response.url);
            if (!response.ok) throw new Error(response.status);
            const text = await response.text();
            if (text !== shown && !live.matches(":active")) { // a moved element would lose the click
                swap(JSON.parse(text));
                shown = text;
            }
            if (document.body.classList.contains("lost")) connected(true);
        } catch (error) {
            if (error.name !== "AbortError") connected(false);
        }
        updateAges();
    }

    function connected(is) {
        if (document.body.classList.toggle("lost", !is) === (icon.href === GREY)) return;
        if (is) { // the next refresh brings the title and the icon
            announce("");
            shown = "";
            return load(location.href);
        }
        const time = new Date().toTimeString().slice(0, 5);
        announce(`Not connected since ${time}. The data below may be old.`, "disconnected");
        document.title = `Not connected · ${document.querySelector(".home").textContent}`;
        icon.href = GREY;
    }

    function swap(parts) {
        const focused = live.contains(document.activeElement) && selectorOf(document.activeElement);
        const open = [...document.querySelectorAll("#live details, #after details")].filter((details) => details.open);
        const rows = new Map([...live.querySelectorAll("[data-key]")].map((row) => [row.dataset.key, row]));
        const page = document.createElement("template");
        page.innerHTML = parts.live;
        for (const row of page.content.querySelectorAll("[data-key]:empty")) row.replaceWith(rows.get(row.dataset.key));
        live.replaceChildren(...page.content.childNodes);
        after.innerHTML = parts.after;
        for (const details of open) document.getElementById(details.id)?.setAttribute("open", "");
        addButtons();
        if (focused) live.querySelector(focused)?.focus({ preventScroll: true });
        if (document.title !== parts.title) announce(document.title = parts.title, "quiet");
        icon.href = parts.icon;
    }

    // A selector that finds the element again after a refresh: a link, a button or the summary of details.
    function selectorOf(element) {
        const id = element.parentElement.id;
        if (element.matches("summary")) return `[id="${CSS.escape(id)}"] > summary`;
        if (element.closest("thead")) return `thead .${element.parentElement.className} a`; // its address changes
        const name = element.matches("a") ? "href" : "aria-label";
        return `[${name}="${CSS.escape(element.getAttribute(name))}"]`;
    }

    // The text of an age, as `span` in text.py formats it.
    function updateAges() {
        for (const time of document.querySelectorAll("time:not(.clock)")) {
            const seconds = Math.max(0, Math.floor((Date.now() - Date.parse(time.dateTime)) / 1000));
            const [unit, size] = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]].find(([, size]) => seconds >= 2 * size)
                ?? ["s", 1];
            const text = `${Math.floor(seconds / size)} ${unit}${time.className === "elapsed" ? "" : " ago"}`;
            if (time.textContent !== text) time.textContent = text;
        }
    }

    function addButtons() {
        for (const code of document.querySelectorAll("code.command:not(:has(+ .copy))")) {
            const button = document.createElement("button");
            button.className = "copy";
            button.textContent = "Copy";
            button.setAttribute("aria-label", `Copy ${code.textContent}`);
            code.after(button);
        }
    }

    async function copy(button) {
        const code = button.previousElementSibling;
        getSelection().selectAllChildren(code);
        try {
            await navigator.clipboard.writeText(code.textContent);
        } catch {
            document.execCommand("copy"); // the clipboard needs https or localhost
        }
        getSelection().removeAllRanges();
        button.textContent = "Copied";
        setTimeout(() => (button.textContent = "Copy"), 2000);
    }

    function announce(text, kind = "") {
        if (notice.textContent === text) return;
        notice.className = kind;
        notice.textContent = text;
    }

    function go(address, replace = false) {
        history[replace ? "replaceState" : "pushState"](null, "", address);
        load(address);
    }

    function refresh() {
        if (!document.hidden && getSelection().isCollapsed) load(location.href);
    }

    // Append the output of a run from the end of the part that the page contains.
    async function follow(log) {
        while (log.dataset.next) {
            const more = await fetch(log.dataset.next).then((response) => response.json()).catch(() => null);
            if (more) {
                const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
                log.insertAdjacentHTML("beforeend", more.html);
                if (more.html && atEnd && document.getElementById("follow")?.checked) log.scrollTop = log.scrollHeight;
                log.dataset.next = more.next ?? "";
            }
            if (!more?.html) await new Promise((resolve) => setTimeout(resolve, GROW));
        }
        document.getElementById("following")?.remove();
        document.querySelector(".toggle")?.remove();
        refresh();
    }

    let typing, typed = false;
    search.addEventListener("input", () => {
        if (location.pathname !== "/") return; // on other pages, the form opens the list
        clearTimeout(typing);
        const query = new URLSearchParams(location.search);
        search.value ? query.set("q", search.value) : query.delete("q");
        query.delete("page");
        typing = setTimeout(() => {
            go("/" + (query.size ? "?" + query : ""), typed); // Back leads to the list before the first key
            typed = true;
        }, TYPED);
    });
    search.addEventListener("blur", () => (typed = false));
    addEventListener("popstate", () => {
        search.value = new URLSearchParams(location.search).get("q") ?? "";
        load(location.href);
    });
    document.getElementById("main").addEventListener("click", (event) => {
        if (event.target.closest(".copy")) return copy(event.target.closest(".copy"));
        const link = event.target.closest("thead a, .chip, .pager a, p.more a");
        if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        go(link.href);
        if (link.closest(".pager")) scrollTo(0, 0);
    });
    addButtons();
    const log = document.getElementById("log");
    if (log) log.scrollTop = log.scrollHeight;
    if (log) follow(log);
    setInterval(refresh, REFRESH);
    document.addEventListener("visibilitychange", refresh);
})();
