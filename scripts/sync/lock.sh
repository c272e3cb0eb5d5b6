#!/bin/bash
# One run at a time: the lock, the end of a run by a signal, and lock files of dead processes.

# Wait up to 5 seconds for the checkout's lock. It is on the checkout's directory: no file can go stale, and the lock
# stays valid while a repair replaces .git. The kernel releases it when this process ends.
take_lock() {
    exec 9<.
    flock --wait 5 9 || finish unreachable "another run holds '$checkout'; tried again later"
}

# A prefix for commands that move the tree or deploy. They do not hold the lock, so they must end with this script.
END_WITH_SCRIPT=(setpriv --pdeathsig KILL)

# End on SIGTERM, after everything that the run started has ended: a command that ignores the signal would otherwise
# continue without the lock. Under timeout(1) the wait is short, because timeout(1) kills the group after a while.
# Otherwise it takes at most 15 seconds.
# shellcheck disable=SC2317,SC2329 # called by a trap
end_on_term() {
    local tries
    trap '' TERM
    for ((tries = 0; tries < 150; tries++)); do
        is_alone && break
        sleep 0.1 9<&-
    done
    trap - TERM
    kill -TERM $$
}

# Return true if no other process is in this process group, except the timeout(1) that leads it. See proc_pid_stat(5).
# shellcheck disable=SC2317,SC2329 # called by end_on_term
is_alone() {
    local stat line own field
    read -r line <"/proc/$$/stat"
    read -r -a own <<<"${line##*) }"
    for stat in /proc/[0-9]*/stat; do
        read -r line 2>/dev/null <"$stat" || continue # the process has ended
        read -r -a field <<<"${line##*) }"
        [[ ${field[2]:-} != "${own[2]}" || ${field[0]} == Z || ${line%% *} == @($$|"${own[2]}") ]] || return 1
    done
}

# Remove git's own lock files, which outlive a killed git. No other run is alive, because this one holds the lock.
# Needs: GIT_DIR, common_dir, dry_run. Ends with `unreachable` if a living process uses a lock file.
remove_stale_locks() {
    local lock fix
    for lock in {"$GIT_DIR","$common_dir"}/*.lock "$common_dir"/objects/{,info/,info/commit-graphs/}*.lock \
        "$common_dir"/refs/**/*.lock "$common_dir"/modules/{*,*/*,*/*/*}/*.lock; do
        [[ -e $lock ]] || continue # listed twice
        if is_held "$lock"; then
            fix=''
            if [[ ! -O $lock ]]; then fix=$(as_root rm -- "$lock"); fi # its processes cannot be inspected
            finish unreachable "a running git holds '$lock'; tried again later" "$fix"
        fi
        [[ $dry_run ]] || rm -f -- "$lock"
    done
}

# Return true if a living process has the file open, or if a git process works in this repository, in any of its
# worktrees and submodules. (`git commit` closes its lock file while the editor is open.)
is_held() {
    local proc comm common other
    [[ -O $1 ]] || ((EUID == 0)) || return 0 # the processes of another user cannot be inspected
    for proc in /proc/[0-9]*/fd/*; do
        [[ ! $proc -ef $1 ]] || return 0
    done
    common=$(cd -P "$common_dir" && pwd)
    for proc in /proc/[0-9]*/cwd; do
        read -r comm 2>/dev/null <"${proc%cwd}comm" && [[ $comm == git || $comm == git-* ]] || continue
        other=$({ unset GIT_DIR GIT_WORK_TREE && cd -P "$proc" && cd -P "$(git rev-parse --git-common-dir)" && pwd; } 2>/dev/null)
        [[ $other/ != "$common"/* ]] || return 0
    done
    return 1
}
