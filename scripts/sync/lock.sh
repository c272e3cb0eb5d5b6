#!/bin/bash
# One run at a time: the lock, the end of a run by a signal, and lock files of dead processes.

# take_lock DIRECTORY: wait up to 5 seconds for the lock of the repository in DIRECTORY. Other users cannot open the
# file, so they cannot stop runs. The kernel releases the lock when this process ends.
# Needs: checkout, dry_run. Sets: descriptor 9. Returns false if the directory was replaced while the run waited.
take_lock() {
    local file=$1/gitops.lock
    if [[ ! -e $file ]]; then
        [[ ! $dry_run ]] || return 0 # no run was ever here
        create_lock "$1" || return
    fi
    if [[ ! /dev/fd/9 -ef $file ]]; then # after a repair, this process has inherited the lock
        [[ -r $file ]] || finish denied "the lock '$file' cannot be opened by $(user_name)" "$(give_to_user)"
        { exec 9<"$file"; } 2>/dev/null || return
    fi
    flock --wait 5 9 || finish unreachable "another run holds '$checkout'; tried again later"
    [[ /dev/fd/9 -ef $file ]] # else the directory was removed or renamed by the run that held the lock
}

# create_lock DIRECTORY: create the lock file, for its owner only. Returns false if the directory does not exist.
create_lock() {
    (umask 077 && : >>"$1/gitops.lock") 2>/dev/null || return
    # root may run this in another user's checkout (safe.directory), who must be able to lock it too.
    [[ -O $1 ]] || ((EUID)) || chown --reference="$1" -- "$1/gitops.lock"
}

# Let the group write our files in a group-shared repository, as git does with its own.
# Needs: config, GIT_DIR, lock_directory, move_note.
share_files() {
    local file
    [[ ${config[core.sharedrepository]:-} == @(group|true|1|all|world|everybody|2|06?(6)[0-7]) && ! $dry_run ]] || return 0
    for file in "$GIT_DIR"/gitops.lock "$move_note" "$GIT_DIR"/gitops-remote-errors; do
        if [[ $file != */gitops.lock && ! -e $file ]]; then : >"$file"; fi
        [[ ! -O $file ]] || chmod g+rw -- "$file"
    done
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
        [[ -e $lock && $lock != */gitops.lock ]] || continue # removed before (the patterns overlap), or our own
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
