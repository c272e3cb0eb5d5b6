// Refresh the page, search while typing, follow the output of a run. Without this script, links and a form do the same.
"use strict";
(() => {
    const REFRESH = 5000, GROW = 500, TYPED = 120; // milliseconds: between refreshes, between parts of a log, after a key
    const live = document.getElementById("live"), notice = document.getElementById("notice");
    const search = document.getElementById("q");
    let shown = "", loading = new AbortController();

    // Load the page at `address` and replace the live part: for a refresh, a search, an order and a state.
    async function load(address) {
        loading.abort();
        loading = new AbortController();
        try {
            const answer = await fetch(address, { signal: loading.signal });
            const text = await answer.text();
            if (!answer.headers.get("Content-Type").startsWith("text/html")) throw new Error(answer.status);
            if (answer.redirected) return location.assign(answer.url);
            announce("");
            if (text !== shown) swap(new DOMParser().parseFromString(text, "text/html"));
            shown = text;
        } catch (error) {
            if (error.name !== "AbortError") announce("Not connected to the daemon. The data below may be old.");
        }
    }

    function swap(page) {
        const focused = live.contains(document.activeElement) && document.activeElement.getAttribute("href");
        const open = [...live.querySelectorAll("details[open]")].map((details) => details.id);
        live.replaceChildren(...page.getElementById("live").childNodes);
        for (const id of open) document.getElementById(id)?.setAttribute("open", "");
        if (focused) live.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
        if (document.title !== page.title) announce(document.title = page.title, "quiet");
        document.querySelector("link[rel=icon]").href = page.querySelector("link[rel=icon]").href;
    }

    function announce(text, kind = "lost") {
        if (notice.textContent === text) return;
        notice.className = kind;
        notice.textContent = text;
    }

    function go(address) {
        history.replaceState(null, "", address);
        load(address);
    }

    function refresh() {
        if (!document.hidden && getSelection().isCollapsed) load(location.href);
    }

    // Append the output of a run from the end of the part that the page contains.
    async function follow(log) {
        while (log.dataset.next) {
            const more = await fetch(log.dataset.next).then((answer) => answer.json()).catch(() => null);
            if (more) {
                const atEnd = innerHeight + scrollY >= document.documentElement.scrollHeight - 8;
                log.insertAdjacentHTML("beforeend", more.html);
                if (more.html && atEnd) scrollTo(0, document.documentElement.scrollHeight);
                log.dataset.next = more.next ?? "";
            }
            if (!more?.html) await new Promise((resolve) => setTimeout(resolve, GROW));
        }
        document.getElementById("following")?.remove();
        refresh();
    }

    let typing;
    search.addEventListener("input", () => {
        if (location.pathname !== "/") return; // on other pages, the form opens the list
        clearTimeout(typing);
        const asked = new URLSearchParams(location.search);
        search.value ? asked.set("q", search.value) : asked.delete("q");
        typing = setTimeout(() => go("/" + (asked.size ? "?" + asked : "")), TYPED);
    });
    live.addEventListener("click", (event) => {
        const link = event.target.closest("thead a, .chip");
        if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        go(link.href);
    });
    const log = document.getElementById("log");
    if (log) follow(log);
    setInterval(refresh, REFRESH);
    document.addEventListener("visibilitychange", refresh);
})();
