#!/bin/bash
# A person's work: commits that only this checkout has, and changes in the way of a move.

# Keep commits that no ref would reach after the move, or end because gitops.diverged is `refuse`.
# Needs: head, head_branch, branch, local_branch, target.
keep_local_commits() {
    local tip=${local_branch[$branch]:-}
    if [[ ! $head && -e $GIT_DIR/index && $(git ls-files) ]]; then
        finish dirty "the branch $(git symbolic-ref --short HEAD) has no commit yet, but files are staged; commit them"
    fi
    if [[ $tip ]] && has_own_commits "$tip"; then keep_or_refuse "$tip" "$branch"; fi
    if [[ $head && ! $head_branch ]] && has_own_commits "$head" --branches; then keep_or_refuse "$head" 'a detached HEAD'; fi
}

# has_own_commits TIP [REVISION...]: return true if TIP reaches commits that neither the remote nor the last deploy nor
# REVISION reaches. Needs: target, deployed, previous_tip.
has_own_commits() {
    local tip=$1 own
    [[ $tip != "$target" && $tip != "$deployed" && $tip != "$previous_tip" ]] || return
    own=$(git rev-list --max-count=1 "$tip" --not "$target" ${previous_tip:+"$previous_tip"} ${deployed:+"$deployed"} "${@:2}") ||
        repair_or_fail 'the history cannot be read' # so it is unknown whether commits would be lost
    [[ $own ]]
}

# keep_or_refuse COMMIT PLACE
keep_or_refuse() {
    [[ ${setting[diverged]} == reset ]] ||
        finish diverged "${failure:+$failure; }$2 has commits at ${1:0:10} that the remote does not have; push them, or let \
runs keep them under refs/gitops/backup" "$(git_fix config gitops.diverged reset)"
    back_up_commit "$@"
}

# back_up_commit COMMIT PLACE: create refs/gitops/backup/<time>, unless one has this commit. Sets: notes.
back_up_commit() {
    local ref
    ref=refs/gitops/backup/$(timestamp)
    [[ ! $dry_run && ! $(git for-each-ref --points-at="$1" refs/gitops/backup) ]] || return 0
    while ! git update-ref "$ref" "$1" ''; do
        [[ $ref != *+++ ]] || finish failed "the commits at ${1:0:10} cannot be kept as $ref"
        ref+=+ # the name is in use by a backup of the same second
    done
    notes+="; local commits of $2 are kept as $ref"
}

# A `git commit` that waited for its editor may have moved the branch during the move, just before git overwrote it.
# The branch's reflog has its last value.
# Needs: local_branch, branch, head, common_dir.
keep_overwritten_commit() {
    local tip=${local_branch[$branch]:-} last
    [[ $tip && $tip != "$head" ]] || return 0
    read -r last _ < <(tail -n 1 "$common_dir/logs/refs/heads/$branch" 2>/dev/null) || return 0
    if [[ $last != "$tip" ]] && is_commit "$last" && has_own_commits "$last"; then back_up_commit "$last" "$branch"; fi
}

# Some files appear modified although no person changed them: git's filters (line endings, LFS, ident) would not produce
# the committed content from them. They have exactly the content that a checkout writes, so nothing is lost with them.
# Needs: head. Sets: filtered_paths; removes them from blocking_paths.
exclude_filtered_paths() {
    local path others=()
    filtered_paths=()
    for path in "${blocking_paths[@]}"; do
        if [[ $head && ( -f $path || -L $path ) ]] && equals_committed "$path" "$head" &&
            git diff --cached --quiet "$head" -- ":(top,literal)$path"; then
            filtered_paths+=("$path")
        else
            others+=("$path")
        fi
    done
    blocking_paths=("${others[@]}")
}

# The move was refused: write the removed files again.
restore_filtered_paths() {
    ((${#filtered_paths[@]} == 0)) || printf '%s\0' "${filtered_paths[@]}" | git checkout-index --quiet -z --stdin
}

# End with `missing` if the target needs Git LFS and this host does not have it: git would write pointers instead of
# the files. A filter.lfs of the operator's own is respected.
# Needs: config, target.
check_lfs() {
    local filter=${config[filter.lfs.process]:-${config[filter.lfs.smudge]:-}} fix=''
    if [[ $filter ]] && { [[ $filter != git?(-| )lfs* ]] || type -P git-lfs >/dev/null; }; then return 0; fi
    git grep --quiet -E '^[^#]*filter=lfs' "$target" -- .gitattributes ':(glob)**/.gitattributes' 2>/dev/null || return 0
    if type -P git-lfs >/dev/null; then
        fix=$(git_fix lfs install --local)
    elif type -P apt-get >/dev/null; then
        fix=$(as_root apt-get install git-lfs)
    elif type -P dnf >/dev/null; then
        fix=$(as_root dnf install git-lfs)
    fi
    finish missing "${target:0:10} has files in Git LFS, and git-lfs is not set up on this host; nothing was moved" "$fix"
}

# Stash the files that block the move, and leave other work in place. git stash cannot select a staged deletion by its
# path; then it stashes all changes of tracked files.
# Needs: target, blocking_paths. Sets: notes. Returns git's status.
stash_blocking_paths() {
    local stash=(git stash push --quiet --message "gitops: in the way of ${target:0:10}")
    GIT_LITERAL_PATHSPECS=1 "${stash[@]}" --all -- "${blocking_paths[@]}" || "${stash[@]}" || return
    notes+="; the changes that prevented the move are in the stash $(git rev-parse --short refs/stash): ${blocking_paths[*]}"
}
