#!/bin/bash
# A repository that is missing or damaged: the first clone, the repair, and both after a kill.
#
# Both build a complete repository beside .git and rename it into place, so that a partial one is never used:
#     .git:gitops-building   being built        .git:gitops-ready   complete, not yet in place
#     .git:gitops-old        the damaged one, until it is in its final place .git/broken-<time>

# Complete or discard what a killed clone or repair left.
# Needs: dry_run, checkout.
complete_interrupted_swap() {
    if [[ $dry_run ]]; then
        [[ -e .git ]] || finish missing "'$checkout' has no repository; a run would complete its clone or repair"
        return
    fi
    if [[ ! -e .git && -e .git:gitops-ready ]]; then mv -T .git:gitops-ready .git; fi
    if [[ -e .git && -e .git:gitops-old ]]; then mv -T .git:gitops-old ".git/broken-$(timestamp)"; fi
    if [[ -e .git:gitops-ready || -e .git:gitops-building ]]; then rm -rf .git:gitops-ready .git:gitops-building; fi
}

# build_repository URL [CONFIG]: create .git:gitops-building, with all branches of the remote.
# Needs: checkout. Sets: GIT_DIR (the new repository), config, setting, remote_error. Returns git's status.
build_repository() {
    rm -rf .git:gitops-building
    export GIT_DIR=$checkout/.git:gitops-building
    unset GIT_WORK_TREE
    git init --quiet --bare "$GIT_DIR" || return
    if [[ ${2:-} ]]; then cp -- "$2" "$GIT_DIR/config"; else git remote add origin "$1"; fi || return
    git config core.bare false && read_settings || return
    forbid_prompts
    remote_git fetch --quiet --no-auto-maintenance origin
}

# Clone into the checkout, which is an empty directory. The normal run then checks out the branch.
# Needs: GITOPS_CLONE_URL. Sets: cloned.
clone() {
    if ! build_repository "$GITOPS_CLONE_URL"; then
        cd / && rm -rf "$GIT_DIR" && rmdir -- "$checkout"
        set_origin "$GITOPS_CLONE_URL"
        end_refused "$remote_error"
        finish unreachable "$origin cannot be cloned: $remote_error; tried again later"
    fi
    mv -T .git:gitops-building .git || finish failed "'$checkout/.git' cannot be created"
    cloned=cloned
}

# repair REASON: rebuild the repository from the remote, copy everything readable from the damaged one (objects, refs,
# reflogs, index, settings), and start the run again. The work tree is not touched. The damaged repository is kept,
# because it may hold a person's commits.
# Needs: checkout, dry_run, repaired. Sets: GITOPS_REPAIRED for the new start. Does not return.
repair() {
    local problem="the repository of '$checkout' is damaged: $1" url broken=$checkout/.git aside fix
    [[ ! $repaired && -d .git && ! -L .git ]] || finish missing "$problem" "$(git_fix fsck)"
    url=$(git config --file .git/config remote.origin.url) || url=''
    set_origin "$url"
    fix=$(as_owner mv -- "$checkout" "$checkout.broken") # then a clone can take its place
    [[ $url ]] || finish missing "$problem, and its config has no origin; move it away, and make a clone" "$fix"
    [[ ! $dry_run ]] || finish missing "$problem; a run would rebuild it from $origin"
    build_repository "$url" .git/config || discard_building unreachable "$problem, and $origin cannot be fetched: $remote_error"
    carry_over "$broken" || discard_building missing "$problem, and $origin does not have the commit that was here; move it away, and make a clone" "$fix"
    # If the run dies after any of these renames, complete_interrupted_swap does the others.
    aside=.git/broken-$(timestamp)
    if ! { mv -T .git:gitops-building .git:gitops-ready && mv -T .git .git:gitops-old &&
        mv -T .git:gitops-ready .git && mv -T .git:gitops-old "$aside"; }; then
        finish failed "$problem, and it cannot be replaced"
    fi
    export GITOPS_REPAIRED="the repository was damaged ($1) and was rebuilt from $origin; the damaged one is kept as \
'$checkout/$aside' until a person removes it"
    unset GIT_DIR GIT_WORK_TREE
    exec "$BASH" "$script" "${arguments[@]}" 9<&- # the new process takes the lock again
}

discard_building() { rm -rf "$GIT_DIR" && finish "$@"; }

# carry_over BROKEN: copy what is readable into the new repository. Files are linked, not copied.
# Needs: GIT_DIR (the new repository). Returns 1 if HEAD's commit is not available.
carry_over() {
    local broken=$1 part file
    for part in objects info hooks modules worktrees lfs logs config.worktree gitops-unfinished; do
        [[ ! -e $broken/$part ]] || cp -a --link --no-clobber -- "$broken/$part" "$GIT_DIR/" 2>/dev/null
    done
    for file in "$GIT_DIR"/objects/**; do
        [[ ! -f $file || -s $file ]] || rm -f -- "$file"
    done
    rm -rf "$GIT_DIR"/objects/info/commit-graph* "$GIT_DIR"/objects/pack/multi-pack-index
    carry_over_refs "$broken" && is_complete || return 1
    cp -- "$broken/index" "$GIT_DIR/index" 2>/dev/null
    git diff-index --cached --quiet HEAD 2>/dev/null
    if (($? > 1)); then rm -f "$GIT_DIR/index" && git read-tree HEAD; fi # 1: staged work, which is kept
}

# carry_over_refs BROKEN: create the refs whose objects are readable, and HEAD.
# Returns 1 if HEAD's commit is not available.
carry_over_refs() {
    local broken=$1 id='' ref value='' branch=''
    local -A refs=()
    while read -r id ref; do # loose refs last, because they are newer than packed ones
        if is_commit "$id" && [[ $ref == refs/* && $ref != refs/remotes/* ]] && git cat-file -e "$id" 2>/dev/null; then
            refs[$ref]=$id
        fi
    done < <(cd "$broken" && {
        cat packed-refs && echo
        for ref in refs/**; do
            [[ ! -f $ref ]] || { read -r id <"$ref"; printf '%s %s\n' "$id" "$ref"; }
        done
    } 2>/dev/null)
    for ref in "${!refs[@]}"; do git update-ref "$ref" "${refs[$ref]}"; done
    read -r value branch 2>/dev/null <"$broken/HEAD"
    if is_commit "$value"; then
        git update-ref --no-deref HEAD "$value" 2>/dev/null
        return
    fi
    [[ $value == ref: && $branch == refs/heads/* ]] && is_branch "${branch#refs/heads/}" ||
        branch=refs/heads/$(lost_branch) || return 1
    git symbolic-ref HEAD "$branch" || return 1
    # The commit may be lost with the branch's ref. The reflog and the last deploy name it too.
    read -r _ value _ < <(tail -n 1 "$broken/logs/HEAD" 2>/dev/null)
    for id in "${refs[$branch]:-}" "${value:-}" "${refs[$state_refs/deployed]:-}"; do
        if is_commit "$id" && git cat-file -e "$id^{commit}" 2>/dev/null; then break; fi
    done
    git update-ref HEAD "$id" 2>/dev/null
}

# Print the branch that HEAD named, if HEAD cannot be read: gitops.branch, else the remote's default branch.
lost_branch() {
    git config gitops.branch && return
    branch='' && ask_remote && [[ $remote_default ]] && printf '%s\n' "$remote_default"
}

# repair_or_fail PROBLEM: git failed. Repair the repository if it is damaged, else end with `failed`.
repair_or_fail() {
    if is_broken; then repair "$1"; fi
    finish failed "git failed: $1; the repository is not damaged, and the next run tries again"
}
